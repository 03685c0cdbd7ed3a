#!/usr/bin/env bash
# Installs programs that `tests/bench.py --peers` measures beside rewrap, each in a folder of its own below .venv/peers.
set -euo pipefail
cd "$(dirname "$0")/../.."
peers=.venv/peers
mkdir -p "$peers"

python_peer() { # folder, requirement
    "${PYTHON:-python3}" -m venv "$peers/$1"
    "$peers/$1/bin/python" -m pip install --quiet --disable-pip-version-check "$2"
}

python_peer vllm-router vllm-router==0.1.17
python_peer litellm 'litellm[proxy]==1.108.7'
npm install --silent --no-fund --no-audit --prefix "$peers/aimock" @copilotkit/aimock@1.43.0
