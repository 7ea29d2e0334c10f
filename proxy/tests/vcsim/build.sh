#!/bin/sh
# Builds the vCenter simulator from Debian's packages (golang-1.19-go golang-github-vmware-govmomi-dev
# golang-github-google-uuid-dev), console tickets added by overlay. Usage: build.sh OUTPUT
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "$1")
overlay=$(mktemp)
trap 'rm -f "$overlay"' EXIT
added=/usr/share/gocode/src/github.com/vmware/govmomi/simulator/zz_ticket.go
printf '{"Replace":{"%s":"%s"}}\n' "$added" "$here/ticket.go" >"$overlay"
cd "$here"
GO111MODULE=off
GOPATH=/usr/share/gocode
GOFLAGS=
go=/usr/lib/go-1.19/bin/go
export GO111MODULE GOPATH GOFLAGS
# Written beside and renamed, so that two builders at once leave a whole file.
"$go" build -p 1 -overlay "$overlay" -o "$out.$$" main.go
mv "$out.$$" "$out"
