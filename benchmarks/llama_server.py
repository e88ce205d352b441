"""Serve a GGUF model on this machine: llama.cpp's own HTTP server, from the package xllamacpp.

    pip install xllamacpp
    python benchmarks/llama_server.py MODEL.gguf [--port 8080] [--context 8192] [--threads 2]

Prints the address of the OpenAI-compatible endpoint once the model is loaded, and serves until its
standard input is closed or it is interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a GGUF model on this machine.")
    parser.add_argument("model", help="a .gguf file")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--context", type=int, default=8192, help="tokens, over all slots")
    parser.add_argument("--slots", type=int, default=1, help="requests worked on at the same time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--key-env", default="", help="variable with the key that is asked for")
    args = parser.parse_args()

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.n_ctx = args.context
    params.n_parallel = args.slots
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.port = args.port
    params.ui = False
    if args.key_env:
        params.api_keys = [os.environ[args.key_env]]
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    os._exit(0)  # the server's own threads do not always end by themselves


if __name__ == "__main__":
    main()
