"""Many ports of many targets: TCP connect scans and UDP scans, with a report that counts what the scan missed."""
