#!/bin/sh
# Stands in for the Python of an engine's processes: their output, including that of native code,
# goes to the engine's log, and they don't get the terminal's Ctrl-C, which we handle.
exec setsid "$MLPERF_ENGINE_PYTHON" "$@" >>"$MLPERF_ENGINE_LOG" 2>&1
