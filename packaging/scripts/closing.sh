# Prints the next steps after a first installation.

# Prints the addresses at which a socket on ADDRESS is reachable from other machines, one per line, in the form of URLs.
# ADDRESS is that of listen.json, without the port.
closing_addresses() {
  case $1 in
  0.0.0.0 | '[::]') ;;
  *)
    echo "$1"
    return 0
    ;;
  esac
  for own in $(hostname --all-ip-addresses 2>/dev/null || true); do
    case $own in
    # A link-local address does not work in a browser. The address of Docker's bridge is not reachable from other
    # machines.
    fe80:* | 172.17.*) ;;
    *:*) if [ "$1" = '[::]' ]; then echo "[$own]"; fi ;;
    *) echo "$own" ;;
    esac
  done
}

# Prints the machine's NAME if it resolves to one of the ADDRESSES. Another address would not answer.
closing_name() {
  for at in $(getent ahosts "$1" 2>/dev/null | cut -d ' ' -f 1 | sort -u); do
    case $at in *:*) at="[$at]" ;; esac
    if printf '%s\n' "$2" | grep -qxF "$at"; then
      echo "$1"
      return 0
    fi
  done
}

closing() {
  if [ ! -d /run/systemd/system ]; then
    cat <<'TEXT'

codex-authd is installed; systemd does not run here, so it was not started. It starts at the next boot, or with
  systemctl start codex-authd.service

TEXT
    return 0
  fi
  if ! systemctl is-active --quiet codex-authd.service; then
    cat <<'TEXT'

codex-authd is installed, but did not start. To find the problem:
  sudo codex-authd doctor
  journalctl --unit codex-authd

TEXT
    return 0
  fi
  admin=$(sed -n 's/.*"admin": *"\([^"]*\)".*/\1/p' /var/lib/codex-authd/listen.json 2>/dev/null) || admin=
  admin=${admin:-[::]:9443}
  addresses=$(closing_addresses "${admin%:*}")
  name=$(closing_name "$(hostname --fqdn 2>/dev/null || uname -n)" "$addresses")
  echo
  echo "codex-authd is running."
  echo
  label="The dashboard"
  # Without an address of its own, the machine uses localhost.
  for at in $name ${addresses:-localhost}; do
    printf '  %-24shttps://%s:%s/\n' "$label" "$at" "${admin##*:}"
    label=
  done
  cat <<'TEXT'
  It needs an admin certificate. Make one, and import it into a browser:
                          sudo codex-authd admin-cert NAME --out NAME.p12
  Check the installation  sudo codex-authd doctor

TEXT
}
