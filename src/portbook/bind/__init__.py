"""Have a port: the real bind, free ports, leased sockets and how another program inherits them."""
