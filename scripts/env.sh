# Sourced by the other scripts: an environment of its own in .venv, with what the arguments name.
#
#   . scripts/env.sh ".[demo]"     afterwards `$py` is its Python
#
# PYTHON chooses the interpreter it is made with, VENV its place.

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
py=$VENV/bin/python
unset PYTHONDONTWRITEBYTECODE # importing torch without compiled bytecode takes seconds, every time

if [ ! -x "$py" ]; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "vggfeat needs Python 3.10 or newer; $PYTHON is $("$PYTHON" --version). Set PYTHON." >&2
        exit 2
    }
    "$PYTHON" -m venv "$VENV"
fi
"$py" -m uv --version >/dev/null 2>&1 || "$py" -m pip install --quiet --disable-pip-version-check uv
"$py" -m uv pip install --quiet --python "$py" --compile-bytecode "$@"
