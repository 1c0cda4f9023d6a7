"""What stands in for netstat.exe, tasklist.exe and netsh.exe: prints the file that a variable names, and ends as told.

PORTBOOK_REPLAY_NETSTAT=FILE, PORTBOOK_REPLAY_NETSTAT_SLEEP_S=SECONDS, PORTBOOK_REPLAY_NETSTAT_EXIT=CODE, and the same
for TASKLIST and NETSH; PORTBOOK_REPLAY_LOG=FILE gets the command lines, or =DIRECTORY, a file for each process.
PORTBOOK_REPLAY_NETSH_WORD=FILE is printed when WORD is one of the arguments. PORTBOOK_REPLAY_NETSH_TOGETHER=N waits
until N processes have written to the directory.
"""

import os
import sys
import time


def variable(name, default):
    return os.environ.get("PORTBOOK_REPLAY_" + name, default)


program = os.path.basename(sys.argv[0]).lower().removesuffix(".exe")
if log := variable("LOG", ""):
    with open(os.path.join(log, str(os.getpid())) if os.path.isdir(log) else log, "a", encoding="utf-8") as file:
        file.write(" ".join([program + ".exe", *sys.argv[1:]]) + "\n")
if together := int(variable(program.upper() + "_TOGETHER", "0")):
    for _ in range(600):  # a minute at most
        if len(os.listdir(log)) >= together:
            break
        time.sleep(0.1)
time.sleep(float(variable(program.upper() + "_SLEEP_S", "0")))
special = [variable(f"{program}_{word}".upper(), "") for word in sys.argv[1:]]
answer = next(filter(None, special), variable(program.upper(), os.devnull))
with open(answer, "rb") as file:
    sys.stdout.buffer.write(file.read())  # bytes: text would get CR LF twice
sys.exit(int(variable(program.upper() + "_EXIT", "0")))
