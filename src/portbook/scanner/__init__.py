"""Many ports of many targets: TCP connect scans and UDP probes, with a report of what the scan itself missed."""
