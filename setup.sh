#!/usr/bin/env bash
# Make the Python environment of a backend and activate it; with --demo or --test, use it.
# Safe to repeat, and to repeat after an interruption.

_mlperf_usage() {
  cat <<'USAGE'
Usage: source setup.sh [OPTIONS]     make the environment, activate it in this shell
       ./setup.sh [OPTIONS]          the same; on a terminal, in a new shell
       ./setup.sh --demo [OPTIONS]   ... and run the main job on the bundled model
       ./setup.sh --test [OPTIONS]   ... and run every check and test

  --backend NAME   pytorch, vllm or sglang (default: $MLPERF_BACKEND, else pytorch; --test: all)
  --device DEVICE  auto, cpu or cuda (default: auto, cuda where nvidia-smi finds a GPU)
  --venv DIR       where the environment lies (default: .venv-BACKEND-DEVICE beside this script)
  --python PATH    the Python to build on, 3.11 or newer (default: the first found)
  --index URL      look for packages here too, e.g. where torch has builds for CPUs
  --force          make the environment anew
  --demo           MLPerf Offline on the bundled model, accuracy then performance, and a table
  --test           ruff, mypy, shellcheck and pytest, as CI runs them, in every engine's environment
  --help           this text
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

# All that an installation depends on: the files, and the folders in this tree that they name.
_mlperf_wanted() { # REQUIREMENTS...
  cat requirements/base.txt "$@"
  local folder
  sed -n 's|^\./||p' "$@" | while read -r folder; do
    find "$folder" -type f -not -path '*/__pycache__/*' | LC_ALL=C sort | xargs cat
  done
}

# Installs what the requirements files name, unless the stamp says that just these are installed.
# What a .nodeps.txt names is installed afterwards, without what it asks for.
_mlperf_install() { # VENV STAMP_NAME INDEX REQUIREMENTS...
  local venv=$1 stamp=$1/.complete-$2 index=$3 wanted
  shift 3
  wanted=$(_mlperf_wanted "$@" | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  rm -f "$stamp"
  echo "setup.sh: installing $* into $venv" >&2
  local file files=() alone=() pip=("$venv/bin/python" -m pip install --quiet
    --disable-pip-version-check)
  [ -z "$index" ] || pip+=(--extra-index-url "$index")
  for file in "$@"; do
    case $file in
      *.nodeps.txt) alone+=(-r "$file") ;;
      *) files+=(-r "$file") ;;
    esac
  done
  "${pip[@]}" "${files[@]}"
  [ ${#alone[@]} -eq 0 ] || "${pip[@]}" --no-deps "${alone[@]}"
  echo "$wanted" >"$stamp"
}

# Makes the environment of an engine on $device; where $task is "test", for tests too.
_mlperf_environment() { # VENV BACKEND
  local venv=$1 backend=$2
  local requirements=("requirements/$backend-$device.txt")
  [ -f "${requirements[0]}" ] ||
    _mlperf_fail "no environment for --backend $backend --device $device;" \
      "there are: $(cd requirements && echo ./*-c*.txt | sed 's|\./||g; s|[^ ]*nodeps.txt *||g; s|\.txt||g')"
  if [ -f "requirements/$backend-$device.nodeps.txt" ]; then
    requirements+=("requirements/$backend-$device.nodeps.txt")
  fi
  # An interpreter that does not start was left by an interruption.
  if [ -n "$force" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    local found
    found=$(_mlperf_find_python "$python")
    echo "setup.sh: making $venv with $("$found" --version)" >&2
    rm -rf "$venv"
    "$found" -m venv "$venv"
    echo "export MLPERF_BACKEND=$backend" >>"$venv/bin/activate"
  fi
  _mlperf_install "$venv" run "$index" "${requirements[@]}"
  [ "$task" != test ] ||
    _mlperf_install "$venv" test "$index" "${requirements[@]}" requirements/test.txt
}

_mlperf_activate() { # VENV BACKEND
  VIRTUAL_ENV=$(cd "$1" && pwd)
  export VIRTUAL_ENV PATH=$VIRTUAL_ENV/bin:$PATH MLPERF_BACKEND=$2
}

_mlperf_demo() { # BACKEND DEVICE
  local out=mlperf_results/demo
  local run=(python run_mlperf.py --backend "$1")
  [ "$1" != pytorch ] || run=(torchrun --nproc_per_node=2 run_mlperf_mpi.py)
  run+=(--mode offline --model data/tiny/model --device "$2"
    --input-file data/tiny/final_output.pkl --output-dir "$out")
  "${run[@]}" --accuracy
  "${run[@]}" --min-duration 0 --min-query-count 480 # a full run takes ten minutes and more
  python -m mlperf.summary "$out"
}

_mlperf_test() { # BACKEND
  if [ "$1" = pytorch ]; then
    ruff check .
    ruff format --check .
    mypy
    shellcheck setup.sh .ci/run backends/*.sh
    python -m pytest -m "not slow"
    python -m pytest -m slow
  else
    python -m pytest -m "$1"
  fi
}

# Runs in a subshell, so that a sourcing shell keeps its options and variables. Writes the
# environment's directory to descriptor 3.
_mlperf_main() (
  set -euo pipefail
  backend='' device=auto venv='' python='' index='' force='' task=''
  cd "$(dirname "${BASH_SOURCE[0]}")"
  while [ $# -gt 0 ]; do
    case $1 in
      --backend | --device | --venv | --python | --index)
        [ $# -ge 2 ] || _mlperf_fail "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --force) force=1 ;;
      --demo | --test) task=${1#--} ;;
      --help | -h) _mlperf_usage >&2 && exit 0 ;;
      *) _mlperf_fail "unknown option $1 (see --help)" ;;
    esac
    shift
  done
  if [ "$device" = auto ]; then
    device=cpu
    if nvidia-smi -L >/dev/null 2>&1; then device=cuda; fi
  fi
  if [ "$task" = test ]; then
    [ -z "$venv" ] || [ -n "$backend" ] || _mlperf_fail "--test --venv DIR needs a --backend"
    local all=("$backend")
    [ -n "$backend" ] || all=(pytorch vllm sglang)
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
  backend=${backend:-${MLPERF_BACKEND:-pytorch}}
  venv=${venv:-.venv-$backend-$device}
  _mlperf_environment "$venv" "$backend"
  _mlperf_activate "$venv" "$backend"
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
