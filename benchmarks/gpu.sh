#!/usr/bin/env bash
# Proves and measures nar_scale on the GPU of this machine, without network, from what `make gpu-kit` gathered.
#   bash benchmarks/gpu.sh [--only STAGE ...] [--seconds N] [--output DIR] [--rehearse]
# PYTHON names the interpreter that has torch; otherwise .venv's if there is one, or else python3.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-}
if [[ -z $python ]]; then
    python=python3
    if [[ -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
fi
export PYTHONPATH=$root
exec "$python" -m benchmarks.gpu.run "$@"
