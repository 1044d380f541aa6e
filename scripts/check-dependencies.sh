#!/usr/bin/env bash
# Bans, each with its reason; offline (reads the lock file through cargo).
set -euo pipefail
cd "$(dirname "$0")/.."
fail=0
tree=$(cargo tree --locked --offline --workspace --edges normal,build --prefix none --format '{p}|{l}' | sed '/^$/d' | sort -u)
ban() { # crate reason
  if grep -qE "^$1 v" <<<"$tree"; then echo "banned dependency $1: $2"; cargo tree --locked --offline -i "$1" | head -12; fail=1; fi
}
ban ring "one crypto provider: aws-lc-rs"
ban openssl "one TLS library: rustls"
ban native-tls "one TLS library: rustls"
ban serde_yaml "unmaintained: serde-saphyr"
ban chrono "one time library: jiff"
# Licences that an Apache-2.0 program may link (MPL-2.0 binds only the files of the library itself).
allowed='Apache-2.0|MIT|MIT-0|BSD-2-Clause|BSD-3-Clause|ISC|Zlib|Unicode-3.0|0BSD|CC0-1.0|Unlicense|CDLA-Permissive-2.0|BSL-1.0|OpenSSL|MPL-2.0'
bad=$(grep -vE "\|.*($allowed)" <<<"$tree" || true)
if [ -n "$bad" ]; then echo "dependencies with a licence that is not on the list:"; echo "$bad"; fail=1; fi
# Whoever needs unsafe code says so in a named module with the reason.
allowed_unsafe=$(grep -rlE 'allow\(unsafe_code' crates --include='*.rs' | while read -r f; do grep -qE 'reason ?=' "$f" || echo "$f"; done || true)
if [ -n "$allowed_unsafe" ]; then echo "allow(unsafe_code) without a reason:"; echo "$allowed_unsafe"; fail=1; fi
exit $fail
