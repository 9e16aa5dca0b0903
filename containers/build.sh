#!/usr/bin/env bash
# Build one image where there is no docker, on Debian, as root: buildah in a chroot, on a base of Debian's own packages.
#
#   apt-get install --no-install-recommends buildah crun mmdebstrap
#   make images IMAGE=tracking
#
# A proof that the Dockerfile builds and its program starts; what is published comes from the workflow `images`.
# Behind a proxy that signs for others, SSL_CERT_FILE is what the build trusts too.
set -euo pipefail

image=${1:?usage: containers/build.sh IMAGE, one of containers/*/Dockerfile}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -f "containers/$image/Dockerfile" ] || { echo "build.sh: no containers/$image/Dockerfile" >&2; exit 2; }
for program in buildah mmdebstrap; do
  command -v "$program" >/dev/null || { echo "build.sh: $program is missing: apt-get install --no-install-recommends buildah crun mmdebstrap" >&2; exit 2; }
done

store=${BARD_HOME:-.bard}/images
mkdir -p "$store"
buildah() { command buildah --storage-driver vfs --root "$store/root" --runroot "$store/run" "$@"; }
certificates=(-v "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}:/etc/ssl/certs/ca-certificates.crt:ro")

# Bookworm has Python 3.11. A virtual environment in /usr/local stands where the published base has its Python.
if ! buildah inspect --type image localhost/bard-base >/dev/null 2>&1; then
  mmdebstrap --variant=minbase --include=python3,python3-venv,ca-certificates,netbase,tzdata bookworm "$store/base.tar"
  base=$(buildah from scratch)
  buildah add -q "$base" "$store/base.tar" /
  buildah run --isolation chroot "$base" -- python3 -m venv /usr/local
  buildah config --env PATH=/usr/local/bin:/usr/bin:/bin "$base"
  buildah commit -q "$base" localhost/bard-base
  buildah rm "$base" >/dev/null
fi

buildah bud --isolation chroot --network host "${certificates[@]}" --build-arg BASE_IMAGE=localhost/bard-base \
  --build-arg GIT_COMMIT="$(git rev-parse HEAD)" -f "containers/$image/Dockerfile" -t "localhost/bard-$image" .

# The stages' images answer by Bard itself, the tracking server by MLflow; both as the user that the image names.
trial=$(buildah from "localhost/bard-$image")
trap 'buildah rm "$trial" >/dev/null' EXIT
if [ "$image" = tracking ]; then said=(mlflow --version); else said=(bard schema); fi
buildah run --isolation chroot --user 10001 "$trial" -- "${said[@]}"
