#!/bin/bash
# A real Apptainer on one Debian machine, for every user of it, leaving the system's C library alone.
#
#   containers/install-apptainer.sh          install what is missing; again is fine and quick
#   containers/install-apptainer.sh remove   take it away; the helper packages from apt stay
#
# SCALEBENCH_APPTAINER   where it lies (/opt/scalebench-apptainer); /usr/local/bin/apptainer is a link to it
#
# Debian has Apptainer in unstable only, built against a newer C library than a stable release's. So both packages are
# taken from unstable, through the machine's own mirror and checked by Debian's keys, and unpacked under one folder;
# apt's own lists and sources stay as they are, and no other program sees that C library.
set -euo pipefail

PREFIX=${SCALEBENCH_APPTAINER:-/opt/scalebench-apptainer}
LINK=/usr/local/bin/apptainer
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
HELPERS=(patchelf squashfs-tools squashfuse fuse3 fuse-overlayfs fuse2fs uidmap fakeroot debootstrap libseccomp2 libsqlite3-0 ca-certificates)
LOG=$PREFIX.log
export PATH=$PATH:/usr/sbin:/sbin

refuse() { echo "error: $1" >&2; exit 2; }
fail() { echo "error: $1" >&2; exit 1; }

check_machine() {
  ((EUID == 0)) || refuse "installing Apptainer needs root: try it with sudo"
  [[ $PREFIX =~ ^/[A-Za-z0-9._/-]+$ ]] || refuse "SCALEBENCH_APPTAINER=$PREFIX: an absolute path of letters, digits and ._-/ is needed"
  [[ -n $(command -v apt-get) && -e $KEYRING ]] || refuse "this script needs Debian (apt-get and $KEYRING); elsewhere see apptainer.org"
  [[ $(dpkg --print-architecture) == amd64 ]] || refuse "this script knows amd64 only: see apptainer.org"
}

works() { "$PREFIX/bin/apptainer" --version >/dev/null 2>&1 && [[ -s $PREFIX/packages ]]; }

mirror() { # of the machine's own apt: the first archive of Debian itself among its sources
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | sed -n 1p
}

download() { # folder: both packages, by an apt whose sources, lists and cache are in this folder alone
  local folder=$1 url
  url=$(mirror)
  [[ -n $url ]] || fail "no archive of Debian among this machine's apt sources"
  mkdir -p "$folder"/{lists,cache/archives}/partial
  echo "deb [signed-by=$KEYRING] $url sid main" >"$folder/sources.list"
  local options=(-o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
    -o Dir::State::Lists="$folder/lists" -o Dir::Cache="$folder/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root)
  apt-get -qq "${options[@]}" update && (cd "$folder" && apt-get -qq "${options[@]}" download apptainer libc6)
}

unpack() { # folder of the packages, folder to fill: the program as it will lie under PREFIX
  local packages=$1 new=$2 file
  dpkg -x "$packages"/apptainer_*.deb "$packages/apptainer" && dpkg -x "$packages"/libc6_*.deb "$packages/libc6" &&
    mkdir -p "$new/glibc" && cp -a "$packages"/apptainer/usr/{bin,lib} "$packages"/apptainer/{etc,var} "$new" &&
    cp -a "$packages"/libc6/usr/lib/x86_64-linux-gnu/*.so* "$new/glibc" || return
  # RPATH, not RUNPATH: what the libraries themselves need must come from the same place.
  for file in "$new/bin/apptainer" "$new/lib/x86_64-linux-gnu/apptainer/bin/starter"; do
    patchelf --set-interpreter "$PREFIX/glibc/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$PREFIX/glibc" "$file" || return
  done
  # The starter takes lib/ for its prefix, as Debian's lib/x86_64-linux-gnu is one level deeper than it expects.
  ln -s ../etc "$new/lib/etc" && ln -s ../var "$new/lib/var"
  # A root without all capabilities, as in many containers, cannot hand all of them on.
  capsh --print 2>/dev/null | grep -q '^Current: =ep$' ||
    sed -i 's/^root default capabilities = .*/root default capabilities = file/' "$new/etc/apptainer/apptainer.conf"
  (cd "$packages" && sha256sum ./*.deb) >"$new/packages"
}

install() {
  check_machine
  if ! works; then
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK" "$PREFIX.new"' EXIT
    echo "installing Apptainer in $PREFIX, and with apt-get: ${HELPERS[*]}"
    rm -rf "$PREFIX.new"
    {
      apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${HELPERS[@]}" &&
        download "$WORK" && unpack "$WORK" "$PREFIX.new"
    } >"$LOG" 2>&1 </dev/null || fail "Apptainer is not installed ($(tail -n 1 "$LOG")); see $LOG"
    rm -rf "$PREFIX" && mv "$PREFIX.new" "$PREFIX"
    works || fail "$PREFIX/bin/apptainer does not run on this machine; see $LOG"
  fi
  ln -sfn "$PREFIX/bin/apptainer" "$LINK"
  # Users mount images by FUSE. Without udev this is gone after a restart; the same command again sets it.
  [[ ! -e /dev/fuse || $(stat -c %a /dev/fuse) == 666 ]] || chmod 666 /dev/fuse || fail "/dev/fuse cannot be opened to users"
  # Ordinary users got a range of ids for their builds when they were made; root, who may lack what a build by root needs, did not.
  grep -qs '^root:' /etc/subuid || usermod --add-subuids 10000000-10065535 --add-subgids 10000000-10065535 root
  "$LINK" --version
}

remove() {
  check_machine
  [[ $(readlink "$LINK") != "$PREFIX/bin/apptainer" ]] || rm "$LINK"
  rm -rf --one-file-system "$PREFIX" "$LOG"
}

case "${1:-install}" in
  install | remove) "${1:-install}" ;;
  *) refuse "usage: install-apptainer.sh [install|remove]" ;;
esac
