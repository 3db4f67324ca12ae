# shellcheck shell=bash disable=SC2154,SC2016
# Part of package.sh: the packages' scripts on a Debian where systemd does not run, as in an image that is being built.

root=$work/root
cp -a --reflink=auto "$AUTHD_TEST_ROOT" "$root"
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
# Everything there is, but for what dpkg, rpm and the tests keep for themselves.
everything() {
  (cd "$root" && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./tmp -o -path ./var/lib/dpkg \
    -o -path ./var/lib/rpm -o -path ./var/log -o -path ./var/cache \) -prune -o -print | sort)
}
wanted() { for link in sockets.target.wants/codex-authd.socket multi-user.target.wants/codex-authd.service; do [ -L "$root/etc/systemd/system/$link" ] || echo "$link is missing"; done; }
of() { inside stat -c '%a %U:%G' "$1"; }
# Lines of "WHAT|WANTED|FOUND" that differ.
compare() { while IFS='|' read -r what want have; do [ "$want" = "$have" ] || echo "$what: wanted $want, have $have"; done; }
modes() {
  compare <<LINES
/etc/codex-authd|750 root:codex-authd|$(of /etc/codex-authd)
config.toml|640 root:codex-authd|$(of /etc/codex-authd/config.toml)
state|700 codex-authd:codex-authd|$(of /var/lib/codex-authd)
the user's shell|/usr/sbin/nologin|$(inside getent passwd codex-authd | cut -d: -f7)
LINES
}
before=$(everything)
cp "$deb" "$root/tmp/authd.deb"

begin "dpkg, where systemd does not run: says what to do, and makes user, directories and links"
said=$(inside dpkg -i /tmp/authd.deb 2>&1) && status= || status="dpkg failed: $said"
grep -q "systemd does not run here" <<<"$said" || status="$status; it does not say what to do: $said"
quiet "$status$(wanted)$(modes)"

begin "a second time changes nothing"
after=$(everything)
said=$(inside dpkg -i /tmp/authd.deb 2>&1) && status= || status="dpkg failed: $said"
quiet "$status$(diff <(echo "$after") <(everything) || true)$(modes)"

begin "the commands work before the first start, and leave the state to the daemon's user"
said=$(inside codex-authd admin-cert test --out /tmp/test.p12 2>&1) && status= || status=$said
foreign=$(inside find /var/lib/codex-authd ! -user codex-authd)
quiet "$status$foreign"

begin "a version that cannot read the state is refused, with the way out, and nothing changes"
cp "$root/var/lib/codex-authd/format" "$work/format"
echo 4294967295 >"$root/var/lib/codex-authd/format"
program=$(sha256sum "$root/usr/bin/codex-authd")
said=$(inside dpkg -i /tmp/authd.deb 2>&1) && status="it was let in" || status=
grep -q "has format 4294967295" <<<"$said" || status="$status; $said"
grep -q "restore a backup" <<<"$said" || status="$status; no way out: $said"
[ "$program" = "$(sha256sum "$root/usr/bin/codex-authd")" ] || status="$status; the program was replaced"
[ "$(inside dpkg-query -W -f '${Status}' codex-authd)" = "install ok installed" ] || status="$status; not installed any more"
mkdir "$root/var/lib/codex-authd/before-format-4294967295"
said=$(inside dpkg -i /tmp/authd.deb 2>&1) || true
grep -q "before-format-4294967295 in its place" <<<"$said" || status="$status; no way back: $said"
rmdir "$root/var/lib/codex-authd/before-format-4294967295"
cp "$work/format" "$root/var/lib/codex-authd/format"
quiet "$status"

begin "removed: the state and the user stay, the units are forgotten; installed again, it goes on"
said=$(inside dpkg -r codex-authd 2>&1) && status= || status=$said
[ -f "$root/var/lib/codex-authd/format" ] && inside getent passwd codex-authd >/dev/null || status="$status; the state or the user is gone"
left=$(find "$root/etc/systemd" "$root/usr/lib/systemd" "$root/var/lib/systemd" -name '*codex-authd*')
said=$(inside dpkg -i /tmp/authd.deb 2>&1) || status="$status; $said"
quiet "$status$left$(wanted)$(modes)"

begin "purged: nothing is left but copies"
mkdir -p "$root/etc/systemd/system/codex-authd.service.d"
echo '[Service]' >"$root/etc/systemd/system/codex-authd.service.d/override.conf"
said=$(inside dpkg -P codex-authd 2>&1) && status= || status=$said
inside getent passwd codex-authd >/dev/null && status="$status; the user is there"
inside getent group codex-authd >/dev/null && status="$status; the group is there"
quiet "$status$(diff <(echo "$before") <(everything) || true)"

begin "copies survive a purge, and it says so"
inside dpkg -i /tmp/authd.deb >/dev/null 2>&1
mkdir -p "$root/var/backups/codex-authd/authd-2026" "$root/etc/credstore"
echo secret >"$root/etc/credstore/codex-authd.master.key"
said=$(inside dpkg -P codex-authd 2>&1) && status= || status=$said
for kept in /var/backups/codex-authd /etc/credstore/codex-authd.master.key; do
  [ -e "$root$kept" ] || status="$status; $kept is gone"
  grep -q "$kept is yours" <<<"$said" || status="$status; it says nothing of $kept: $said"
done
rm -r "$root/var/backups/codex-authd" "$root/etc/credstore/codex-authd.master.key"
quiet "$status"

# rpm's own program comes from outside, the scripts run inside.
rpm_inside() { rpm --root "$root" --nodeps "$@" 2>&1 | grep -vE 'use Alien instead|assuming you know' || true; }

begin "rpm, where systemd does not run"
said=$(rpm_inside -i "$rpm")
rpm_inside -q codex-authd >/dev/null || status=missing
grep -q "systemd does not run here" <<<"$said" && status= || status="it does not say what to do: $said"
quiet "$status$(wanted)$(modes)"

begin "rpm: a version that cannot read the state is refused"
echo 4294967295 >"$root/var/lib/codex-authd/format"
said=$(rpm_inside -U --replacepkgs "$rpm")
grep -q "has format 4294967295" <<<"$said" && grep -q "prein scriptlet failed\|%prein.*failed" <<<"$said" && status= || status=$said
quiet "$status"

begin "rpm: upgraded and erased; the state stays, and it says how to remove it"
echo "$writes" >"$root/var/lib/codex-authd/format"
said=$(rpm_inside -U --replacepkgs "$rpm")
rpm --root "$root" -q codex-authd >/dev/null 2>&1 && status= || status="not installed: $said"
said=$(rpm_inside -e codex-authd)
grep -q "rm -rf /var/lib/codex-authd" <<<"$said" || status="$status; $said"
[ -f "$root/var/lib/codex-authd/format" ] || status="$status; the state is gone"
left=$(find "$root/etc/systemd" "$root/usr/lib/systemd" -name '*codex-authd*')
[ ! -e "$root/usr/bin/codex-authd" ] || left="$left the program"
quiet "$status$left"
