#!/usr/bin/env bash
# Make the Python environment of a backend and activate it; with --demo or --test, use it.
# Safe to repeat, and to repeat after an interruption.

_mlperf_usage() {
  cat <<'USAGE'
Usage: source setup.sh [OPTIONS]     make the environment, activate it in this shell
       ./setup.sh [OPTIONS]          the same; on a terminal, in a new shell
       ./setup.sh --demo [OPTIONS]   ... and run the main job on the bundled model
       ./setup.sh --test [OPTIONS]   ... and run every check and test

  --backend NAME    pytorch, vllm or sglang (default: $MLPERF_BACKEND, else the container's, else the
                    one whose environment or package is here, else pytorch; --demo: does not look
                    for what is here; --test: all)
  --device DEVICE   auto, cpu or cuda (default: auto: the container's, else cuda where nvidia-smi
                    finds a GPU)
  --venv DIR        where the environment lies (default: the container's, else .venv-BACKEND-DEVICE
                    beside this script)
  --python PATH     the Python to build on, 3.11 or newer (default: the first found)
  --index URL       look for packages here too, e.g. where torch has builds for CPUs
  --offline WHEELS  install from this folder of wheels alone, without a network
  --force           make the environment anew
  --verify          import the engine, look for GPUs, let LoadGen run for a second
  --demo            MLPerf Offline on the bundled model, accuracy then performance, and a table
  --test            ruff, mypy, shellcheck and pytest, as CI runs them, in every engine's environment
  --fast            with --test: quick tests only, and PyTorch's environment where no other is named
  --help            this text

Packages are installed by uv where it is found and sees the same places as pip, else by pip.
USAGE
}

_mlperf_fail() {
  echo "setup.sh: $*" >&2
  exit 2
}

_mlperf_find_python() {
  local candidate
  for candidate in "$1" python3 python3.11 python3.12 python3.13 python3.14 python; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
    [ "$candidate" != "$1" ] || _mlperf_fail "--python $1: not a Python 3.11 or newer with venv"
  done
  _mlperf_fail "no Python 3.11 or newer with the venv module found; name one by --python PATH"
}

# What every environment gets by copying: it is no package that pip could build without a network.
_mlperf_copied=requirements/torchrun-nodes

# All that an installation depends on: the files, and the folders in this tree that they name.
_mlperf_wanted() { # REQUIREMENTS...
  cat requirements/base.txt "$@"
  local folder
  { echo "$_mlperf_copied" && sed -n 's|^\./||p' "$@"; } | while read -r folder; do
    find "$folder" -type f -not -path '*/__pycache__/*' | LC_ALL=C sort | xargs cat
  done
}

# Installs what the requirements files name, unless the stamp says that just these are installed.
# What a .nodeps.txt names is installed afterwards, without what it asks for.
_mlperf_install() { # VENV STAMP_NAME REQUIREMENTS...
  local venv=$1 stamp=$1/.complete-$2 wanted
  shift 2
  wanted=$(_mlperf_wanted "$@" | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  [ -w "$venv" ] || _mlperf_fail "$venv is for other requirements than $*, and not yours to change:" \
    "build the image anew (./launch.sh --build), or name another --venv DIR"
  rm -f "$stamp"
  echo "setup.sh: installing $* into $venv" >&2
  local file files=() alone=() places=()
  [ -z "$index" ] || places+=(--extra-index-url "$index")
  [ -z "$offline" ] || places+=(--no-index --find-links "$offline")
  for file in "$@"; do
    case $file in
      *.nodeps.txt) alone+=(-r "$file") ;;
      *) files+=(-r "$file") ;;
    esac
  done
  # A task compiles what it imports, which is little of what is installed; an image has it all ready.
  _mlperf_by_uv "$venv" ||
    _mlperf_put "$venv/bin/python" -m pip install --disable-pip-version-check \
      ${task:+--no-compile} ||
    _mlperf_fail "not everything could be installed, the lines above say why; run this again to go on"
  cp -R "$_mlperf_copied/." "$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')"
  echo "$wanted" >"$stamp"
}

# uv does not read pip's configuration: where that names places to look at, uv would find other
# builds of the same versions.
_mlperf_by_uv() { # VENV
  command -v uv >/dev/null || return
  local configured
  configured=$("$1/bin/python" -m pip config list)
  if [ -z "$offline" ] && [[ $configured =~ \.((extra-)?index-url|find-links|no-index)= ]]; then
    echo "setup.sh: not by uv, because pip is configured to look in places of its own" >&2
    return 1
  fi
  _mlperf_put uv pip install --python "$1/bin/python" --index-strategy unsafe-best-match && return
  echo "setup.sh: uv could not install them; trying pip" >&2
  return 1
}

_mlperf_put() { # COMMAND...
  "$@" --quiet "${places[@]}" "${files[@]}" &&
    { [ ${#alone[@]} -eq 0 ] || "$@" --quiet "${places[@]}" --no-deps "${alone[@]}"; }
}

# Settles $backend, $device and $venv where no option has.
_mlperf_choose() {
  local here=${venv:-${MLPERF_VENV:-/opt/mlperf/venv}} holds candidates
  if [ "$task" != test ]; then # which makes environments of its own, of all engines
    backend=${backend:-${MLPERF_BACKEND:-}}
    if [ -f "$here/.mlperf" ]; then
      holds=$(cat "$here/.mlperf") # as vllm-cuda
      backend=${backend:-${holds%-*}}
      [ "$device" != auto ] || device=${holds##*-}
      venv=$here
    fi
  fi
  if [ "$device" = auto ]; then
    device=cpu
    if nvidia-smi -L >/dev/null 2>&1; then device=cuda; fi
  fi
  if [ -z "$backend" ] && [ -z "$task" ]; then
    read -ra candidates <<<"$(_mlperf_candidates)"
    [ ${#candidates[@]} -le 1 ] || _mlperf_fail "more than one engine is here:" \
      "name one, by --backend or MLPERF_BACKEND: ${candidates[*]}"
    backend=${candidates[0]:-}
  fi
}

# The engines that have an environment here, or a package in the Python in use; in one line.
_mlperf_candidates() {
  local name
  {
    for name in pytorch vllm sglang; do
      [ ! -f ".venv-$name-$device/.complete-run" ] || echo "$name"
    done
    "${python:-python3}" -c 'if True:
      from importlib.util import find_spec
      print(*filter(find_spec, ("vllm", "sglang")), sep="\n")' 2>/dev/null || true
  } | sort -u | xargs
}

# Makes the environment of an engine on $device; where $task is "test", for tests too.
_mlperf_environment() { # VENV BACKEND
  local venv=$1 backend=$2 holds
  local requirements=("requirements/$backend-$device.txt")
  [ -f "${requirements[0]}" ] ||
    _mlperf_fail "no environment for --backend $backend --device $device;" \
      "there are: $(cd requirements && echo ./*-c*.txt | sed 's|\./||g; s|[^ ]*nodeps.txt *||g; s|\.txt||g')"
  if [ -f "requirements/$backend-$device.nodeps.txt" ]; then
    requirements+=("requirements/$backend-$device.nodeps.txt")
  fi
  holds=$(cat "$venv/.mlperf" 2>/dev/null || echo "$backend-$device")
  [ "$holds" = "$backend-$device" ] || [ -n "$force" ] ||
    _mlperf_fail "$venv holds $holds, not $backend-$device: name another --venv DIR, or replace it" \
      "with --force; a container of the other is ./launch.sh --backend $backend --device $device"
  # An interpreter that does not start was left by an interruption.
  if [ -n "$force" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    local found
    found=$(_mlperf_find_python "$python")
    echo "setup.sh: making $venv with $("$found" --version)" >&2
    rm -rf "$venv"
    "$found" -m venv "$venv"
  fi
  if [ ! -f "$venv/.mlperf" ]; then
    echo "export MLPERF_BACKEND=$backend" >>"$venv/bin/activate"
    echo "$backend-$device" >"$venv/.mlperf"
  fi
  if [ "$task" = test ]; then # all at once, which takes less than one after the other
    _mlperf_install "$venv" test "${requirements[@]}" requirements/test.txt
    [ ! -w "$venv" ] || _mlperf_wanted "${requirements[@]}" | cksum >"$venv/.complete-run"
  else
    _mlperf_install "$venv" run "${requirements[@]}"
  fi
}

_mlperf_activate() { # VENV BACKEND
  VIRTUAL_ENV=$(cd "$1" && pwd)
  export VIRTUAL_ENV PATH=$VIRTUAL_ENV/bin:$PATH MLPERF_BACKEND=$2
}

# Says what there is, or fails.
_mlperf_verify() { # BACKEND DEVICE
  local run=(python run_mlperf.py --backend echo --device cpu --mode server
    --model data/tiny/model --input-file data/tiny/final_output.pkl
    --min-duration 1000 --min-query-count 1 --target-qps 200)
  python - "$1" "$2" <<'PYTHON'
import sys
from importlib import import_module
from importlib.metadata import version

backend, device = sys.argv[1:]
import_module(
    {
        "pytorch": "ref_dsinfer.engine",
        "vllm": "vllm.v1.engine.async_llm",
        "sglang": "sglang.srt.entrypoints.http_server",
    }[backend]
)
import torch

engine = "" if backend == "pytorch" else f" {import_module(backend).__version__}"
gpus = [torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())]
print(f"engine   {backend}{engine}, torch {torch.__version__}, Python {sys.version.split()[0]}")
print(f"GPUs     {', '.join(gpus) or 'none seen'}")
print(f"LoadGen  {version('mlcommons-loadgen')}", flush=True)
if device == "cuda" and not gpus:
    sys.exit("setup.sh: torch sees no GPU: does nvidia-smi list one, and is its driver new enough?")
PYTHON
  (
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    "${run[@]}" --output-dir "$folder" >"$folder/said" 2>&1 || { cat "$folder/said" >&2 && exit 1; }
    sed -n 's|^ *samples/s *|         a second on the echo engine, samples/s: |p' "$folder/said"
  )
}

_mlperf_demo() { # BACKEND DEVICE
  local out=mlperf_results/demo
  local run=(python run_mlperf.py --backend "$1")
  # by number: a container may not know its own name
  [ "$1" != pytorch ] || run=(torchrun --nproc_per_node=2 --local-addr=127.0.0.1 run_mlperf_mpi.py)
  run+=(--mode offline --model data/tiny/model --device "$2"
    --input-file data/tiny/final_output.pkl --output-dir "$out")
  "${run[@]}" --accuracy
  "${run[@]}" --min-duration 0 --min-query-count 480 # a full run takes ten minutes and more
  python -m mlperf.summary "$out"
}

_mlperf_test() { # BACKEND
  local tests=(python -m pytest --numprocesses 2 --dist loadfile)
  if [ "$1" = pytorch ]; then
    ruff check .
    ruff format --check .
    mypy
    shellcheck launch.sh setup.sh .ci/run backends/*.sh
    "${tests[@]}" -m "not slow"
    [ -n "$fast" ] || "${tests[@]}" -m slow
  else
    "${tests[@]}" -m "$1${fast:+ and not slow}"
  fi
}

# Runs in a subshell, so that a sourcing shell keeps its options and variables. Writes the
# environment's directory to descriptor 3.
_mlperf_main() (
  set -euo pipefail
  backend='' device=auto venv='' python='' index='' offline='' force='' verify='' task='' fast=''
  while [ $# -gt 0 ]; do
    case $1 in
      --backend | --device | --venv | --python | --index | --offline)
        [ $# -ge 2 ] || _mlperf_fail "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --force | --verify | --fast) printf -v "${1#--}" 1 ;;
      --demo | --test) task=${1#--} ;;
      --help | -h) _mlperf_usage >&2 && exit 0 ;;
      *) _mlperf_fail "unknown option $1 (see --help)" ;;
    esac
    shift
  done
  if [ -n "$offline" ]; then
    compgen -G "$offline/*.whl" >/dev/null || _mlperf_fail "--offline $offline: no wheels there"
    offline=$(cd "$offline" && pwd)
  fi
  [ -z "$fast" ] || [ "$task" = test ] || _mlperf_fail "--fast goes with --test"
  cd "$(dirname "${BASH_SOURCE[0]}")"
  _mlperf_choose
  if [ "$task" = test ]; then
    [ -z "$venv" ] || [ -n "$backend" ] || _mlperf_fail "--test --venv DIR needs a --backend"
    local all=("$backend")
    if [ -z "$backend" ]; then
      all=(pytorch)
      [ -n "$fast" ] || all+=(vllm sglang)
    fi
    for backend in "${all[@]}"; do # all of them first, so that a missing package shows soon
      _mlperf_environment "${venv:-.venv-$backend-$device}" "$backend"
    done
    for backend in "${all[@]}"; do
      (
        _mlperf_activate "${venv:-.venv-$backend-$device}" "$backend"
        _mlperf_test "$backend"
      )
    done
    return
  fi
  backend=${backend:-pytorch}
  venv=${venv:-.venv-$backend-$device}
  _mlperf_environment "$venv" "$backend"
  _mlperf_activate "$venv" "$backend"
  [ -z "$verify" ] || _mlperf_verify "$backend" "$device"
  case $task in
    demo) _mlperf_demo "$backend" "$device" ;;
    *) echo "$VIRTUAL_ENV" >&3 ;;
  esac
)

{ _mlperf_venv=$(_mlperf_main "$@" 3>&1 1>&4); } 4>&1
_mlperf_status=$?
if [ "${BASH_SOURCE[0]}" != "$0" ]; then
  # shellcheck source=/dev/null
  [ -z "$_mlperf_venv" ] || source "$_mlperf_venv/bin/activate"
  return $_mlperf_status
elif [ -n "$_mlperf_venv" ] && [ -t 0 ] && [ -t 1 ]; then
  echo "setup.sh: starting a shell in which $_mlperf_venv is active; leave it with exit" >&2
  exec bash --rcfile <(cat ~/.bashrc 2>/dev/null; echo "source '$_mlperf_venv/bin/activate'")
elif [ -n "$_mlperf_venv" ]; then
  echo "setup.sh: activate it with: source $_mlperf_venv/bin/activate"
fi
exit $_mlperf_status
