"""What stands in for netstat.exe and tasklist.exe: prints the file that a variable names, as bytes, and ends as told.

PORTBOOK_REPLAY_NETSTAT=FILE, PORTBOOK_REPLAY_NETSTAT_SLEEP_S=SECONDS, PORTBOOK_REPLAY_NETSTAT_EXIT=CODE, and the same
for TASKLIST; PORTBOOK_REPLAY_LOG=FILE gets the command lines.
"""

import os
import sys
import time


def variable(name, default):
    return os.environ.get("PORTBOOK_REPLAY_" + name, default)


program = os.path.basename(sys.argv[0]).lower().removesuffix(".exe")
if log := variable("LOG", ""):
    with open(log, "a", encoding="utf-8") as file:
        file.write(" ".join([program + ".exe", *sys.argv[1:]]) + "\n")
time.sleep(float(variable(program.upper() + "_SLEEP_S", "0")))
with open(variable(program.upper(), os.devnull), "rb") as file:
    sys.stdout.buffer.write(file.read())  # bytes: text would get CR LF twice
sys.exit(int(variable(program.upper() + "_EXIT", "0")))
