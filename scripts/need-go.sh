#!/bin/sh
# Says in one line what is wrong with the Go that make would use. Any Go from
# 1.21 on will do: it fetches the version that go.mod names by itself.
go=${GO:-go}
version=$(GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null)
case $version in
go1.[0-9] | go1.[0-9].* | go1.1[0-9]* | go1.20*)
	echo "Culvert needs Go 1.21 or later, and this is $version: https://go.dev/dl" >&2
	exit 1
	;;
go1.* | devel*) ;;
*)
	echo "Culvert needs Go 1.21 or later, and '$go' was not found: https://go.dev/dl" >&2
	exit 1
	;;
esac
