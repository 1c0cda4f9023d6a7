"""The groups of ports that a scan knows by name: ``@common``, ``@web`` and others.

They are portbook's choice from the IANA Service Name and Transport Protocol Port Number Registry (RFC 6335,
https://www.iana.org/assignments/service-names-port-numbers) and of ports that are commonly used without being
registered. A table, which imports nothing: shells complete these names.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would take longer than this table
if TYPE_CHECKING:
    from portbook.records import Protocol

PortGroup = tuple[str, str]  # description, and the ports as -p takes them

TCP: dict[str, PortGroup] = {
    "web": (
        "HTTP, over TLS too, on registered and on customary ports",
        "80,443,3000,4173,4443,5000,5173,5601,7443,8000,8008,8080,8081,8088,8090,8181,8443,8444,8765,"
        "8880,8888,8983,9000,9080,9090,9443,9870,15672",
    ),
    "db": (
        "databases, caches and search engines",
        "1433,1521,2483,2484,2638,3050,3306,5432,5433,5984,6333,6379,6432,7474,7687,8086,8123,8529,9042,"
        "9088,9160,9200,9300,9306,11211,19530,26257,27017,27018,27019,28015,33060",
    ),
    "mail": (
        "mail: transport, submission, mailboxes, filters",
        "25,109,110,143,220,465,587,993,995,4190",
    ),
    "remote": (
        "shells, desktops and management of other machines",
        "22,23,177,512,513,514,623,830,992,2598,3283,3389,4899,5500,5631,5800,5900,5901,5902,5938,5985,"
        "5986,6000,6001,7681,16992,16993,47001",
    ),
    "windows": (
        "what a Windows machine or domain controller serves",
        "53,80,88,135,139,389,443,445,464,593,636,1433,1801,2103,3268,3269,3389,5357,5722,5985,5986,"
        "8530,8531,9389,47001",
    ),
    "queue": (
        "message brokers, streams and their coordination",
        "1883,2181,4222,5222,5671,5672,6650,7676,8883,9092,9093,15672,25672,61613,61616",
    ),
    "common": (
        "a hundred ports that are often open",
        "7,9,13,20,21,22,23,25,37,43,49,53,79,80,88,110,111,113,119,135,139,143,179,389,427,443,445,464,"
        "465,514,515,543,548,554,587,593,631,636,646,873,902,990,993,995,1080,1099,1194,1433,1521,1723,"
        "1883,2000,2049,2181,2375,2379,3000,3128,3260,3268,3306,3389,3478,3690,4369,5000,5060,5222,5357,"
        "5432,5601,5671,5672,5900,5984,5985,5986,6000,6379,6443,6667,7000,7001,8000,8008,8080,8081,8088,"
        "8443,8888,9000,9042,9090,9092,9100,9200,9418,10000,10050,10250,11211,27017",
    ),
}
UDP: dict[str, PortGroup] = {
    "web": ("HTTP/3 over QUIC, on the ports that HTTP has over TCP", "80,443,8080,8443"),
    "db": ("databases and caches that answer over UDP", "1434,11211"),
    "remote": ("desktops, tunnels and management", "177,500,623,1194,1701,3283,3389,4500,5632,51820"),
    "windows": ("what a Windows machine or domain controller serves", "53,88,123,137,138,389,464,500,1434"),
    "queue": ("publishing and telemetry", "1883,5683,5684,8125"),
    "common": (
        "ports that are often open, or answer in most networks",
        "7,9,13,17,19,37,49,53,67,68,69,80,88,111,123,137,138,161,162,177,389,427,443,464,500,514,520,"
        "546,547,554,623,631,1194,1434,1701,1719,1812,1813,1900,2049,3283,3389,3478,3544,3702,3784,4500,"
        "4789,5004,5060,5061,5246,5349,5351,5353,5355,5683,5684,6081,6343,8125,11211,19132,27015,30303,"
        "34962,41641,47808,51820",
    ),
}
GROUPS: dict[Protocol, dict[str, PortGroup]] = {"tcp": TCP, "udp": UDP}
