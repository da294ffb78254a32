#!/bin/sh
# The Python that an engine's processes are started with: what they print, native code included,
# goes to the engine's log, and a Ctrl-C at the terminal is ours to handle, not theirs.
exec setsid "$MLPERF_ENGINE_PYTHON" "$@" >>"$MLPERF_ENGINE_LOG" 2>&1
