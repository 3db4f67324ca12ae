# shellcheck shell=bash disable=SC2154,SC2016
# Part of package.sh: runs the packages' scripts on a Debian ($system) without a running systemd, as in an image build.

root=$work/root
rm -rf "$root"
cp -a --reflink=auto "$system" "$root"
echo "on $(sed -n 's/^PRETTY_NAME="\(.*\)"$/\1/p' "$root/etc/os-release"):"
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
# Lists all files except those of dpkg, rpm and the tests.
everything() {
  (cd "$root" && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev -o -path ./tmp -o -path ./var/lib/dpkg \
    -o -path ./var/lib/rpm -o -path ./var/log -o -path ./var/cache \) -prune -o -print | sort)
}
wanted() { for link in sockets.target.wants/codex-authd.socket multi-user.target.wants/codex-authd.service; do [ -L "$root/etc/systemd/system/$link" ] || echo "$link is missing"; done; }
of() { inside stat -c '%a %U:%G' "$1"; }
# Prints the lines of "WHAT|WANTED|FOUND" that differ.
compare() { while IFS='|' read -r what want have; do [ "$want" = "$have" ] || echo "$what: wanted $want, have $have"; done; }
modes() {
  compare <<LINES
/etc/codex-authd|750 root:codex-authd|$(of /etc/codex-authd)
config.toml|640 root:codex-authd|$(of /etc/codex-authd/config.toml)
state|700 codex-authd:codex-authd|$(of /var/lib/codex-authd)
the user's shell|/usr/sbin/nologin|$(inside getent passwd codex-authd | cut -d: -f7)
LINES
}
# Without /proc it prints errors, but works.
systemctl_inside() { inside systemctl --quiet "$@" 2>/dev/null; }
enabled() { for unit in codex-authd.socket codex-authd.service codex-authd-backup.timer; do systemctl_inside is-enabled "$unit" && echo "$unit"; done; true; }
# An operator's choice: no daemon yet, and a backup every night.
choose() {
  systemctl_inside disable codex-authd.service
  systemctl_inside enable codex-authd-backup.timer
  chosen=$(enabled)
  [ "$chosen" = $'codex-authd.socket\ncodex-authd-backup.timer' ] || { echo "the choice was not made: $chosen" >&2; exit 1; }
}
# An operator's configuration, and a check that it is unchanged.
edited='[limits]
host_per_minute = 77'
edit() { echo "$edited" >"$root/etc/codex-authd/config.toml"; }
untouched() {
  [ "$(cat "$root/etc/codex-authd/config.toml")" = "$edited" ] || echo "the edited configuration: $(cat "$root/etc/codex-authd/config.toml" 2>&1)"
  find "$root/etc/codex-authd" -name 'config.toml?*' -o -name '.config*' | sed "s|^$root|left: |"
}
near_empty() { grep -q /usr/share/codex-authd/config.toml "$root/etc/codex-authd/config.toml" && ! grep -qv '^#' "$root/etc/codex-authd/config.toml" || echo "no near-empty configuration: $(cat "$root/etc/codex-authd/config.toml" 2>&1)"; }
before=$(everything)
cp "$deb" "$root/tmp/authd.deb"

begin "dpkg without a running systemd: says what to do, and makes user, directories and links"
said=$(inside dpkg -i /tmp/authd.deb 2>&1) && status= || status="dpkg failed: $said"
grep -q "systemd does not run here" <<<"$said" || status="$status; it does not say what to do: $said"
quiet "$status$(wanted)$(modes)$(near_empty)"

begin "a second installation changes nothing"
after=$(everything)
said=$(inside dpkg -i /tmp/authd.deb 2>&1) && status= || status="dpkg failed: $said"
quiet "$status$(diff <(echo "$after") <(everything) || true)$(modes)"

begin "the commands work before the first start, and the state belongs to the daemon's user"
said=$(inside codex-authd admin-cert test --out /tmp/test.p12 2>&1) && status= || status=$said
foreign=$(inside find /var/lib/codex-authd ! -user codex-authd)
quiet "$status$foreign"

begin "a version that cannot read the state is refused, says what to do, and changes nothing"
cp "$root/var/lib/codex-authd/format" "$work/format"
echo 4294967295 >"$root/var/lib/codex-authd/format"
program=$(sha256sum "$root/usr/bin/codex-authd")
said=$(inside dpkg -i /tmp/authd.deb 2>&1) && status="it was not refused" || status=
grep -q "has format 4294967295" <<<"$said" || status="$status; $said"
grep -q "restore a backup" <<<"$said" || status="$status; it does not say what to do: $said"
[ "$program" = "$(sha256sum "$root/usr/bin/codex-authd")" ] || status="$status; the program was replaced"
[ "$(inside dpkg-query -W -f '${Status}' codex-authd)" = "install ok installed" ] || status="$status; not installed any more"
mkdir "$root/var/lib/codex-authd/before-format-4294967295"
said=$(inside dpkg -i /tmp/authd.deb 2>&1) || true
grep -q "content of /var/lib/codex-authd/before-format-4294967295 one directory up" <<<"$said" || status="$status; it does not say how to go back: $said"
rmdir "$root/var/lib/codex-authd/before-format-4294967295"
cp "$work/format" "$root/var/lib/codex-authd/format"
quiet "$status"

begin "removed: only state, user, configuration and choices stay; a new installation uses them"
edit
choose
said=$(inside dpkg -r codex-authd 2>&1) && status= || status=$said
[ -f "$root/var/lib/codex-authd/format" ] && inside getent passwd codex-authd >/dev/null || status="$status; the state or the user is gone"
left=$(find "$root/usr" -name '*codex-authd*')
said=$(inside dpkg -i /tmp/authd.deb 2>&1) || status="$status; $said"
quiet "$status$left$(diff <(echo "$chosen") <(enabled) || true)$(untouched)$(modes)"

begin "purged: only backups are left"
mkdir -p "$root/etc/systemd/system/codex-authd.service.d"
echo '[Service]' >"$root/etc/systemd/system/codex-authd.service.d/override.conf"
said=$(inside dpkg -P codex-authd 2>&1) && status= || status=$said
inside getent passwd codex-authd >/dev/null && status="$status; the user is there"
inside getent group codex-authd >/dev/null && status="$status; the group is there"
quiet "$status$(diff <(echo "$before") <(everything) || true)"

begin "backups survive a purge, and it says so"
inside dpkg -i /tmp/authd.deb >/dev/null 2>&1
mkdir -p "$root/var/backups/codex-authd/authd-2026" "$root/etc/credstore"
echo secret >"$root/etc/credstore/codex-authd.master.key"
said=$(inside dpkg -P codex-authd 2>&1) && status= || status=$said
for kept in /var/backups/codex-authd /etc/credstore/codex-authd.master.key; do
  [ -e "$root$kept" ] || status="$status; $kept is gone"
  grep -q "$kept is yours" <<<"$said" || status="$status; it does not mention $kept: $said"
done
rm -r "$root/var/backups/codex-authd" "$root/etc/credstore/codex-authd.master.key"
quiet "$status"

# The layout of 0.1.0: the full reference was the configuration file, and belonged to the package.
begin "from the old layout, unattended: an edited configuration is unchanged, and an unedited one is replaced"
before=$(everything)
old=$work/old-layout
rm -rf "$old"
mkdir -p "$old/DEBIAN" "$old/etc/codex-authd"
printf 'Package: codex-authd\nVersion: 0.0.9\nArchitecture: amd64\nMaintainer: nobody <nobody@example.test>\nDescription: old\n' >"$old/DEBIAN/control"
echo /etc/codex-authd/config.toml >"$old/DEBIAN/conffiles"
cp packaging/config.toml "$old/etc/codex-authd/config.toml"
dpkg-deb --root-owner-group -Znone --build "$old" "$root/tmp/old.deb" >/dev/null
status=
for kind in edited unedited; do
  inside dpkg -i /tmp/old.deb >/dev/null 2>&1 || status="$status; the old package is not installed"
  [ "$kind" = unedited ] || edit
  said=$(inside dpkg -i /tmp/authd.deb </dev/null 2>&1) || status="$status; $kind: $said"
  ! grep -qi 'configuration file\|conffile' <<<"$said" || status="$status; $kind: $said"
  if [ "$kind" = edited ]; then status=$status$(untouched); else status=$status$(near_empty); fi
  # Upgrade, go back, upgrade again: dpkg still knows the file that the old package contained, and asks nothing.
  edit
  for package in authd old authd; do
    said=$(inside dpkg -i "/tmp/$package.deb" </dev/null 2>&1) || status="$status; $kind, then $package: $said"
    status=$status$(untouched)
  done
  inside dpkg -P codex-authd >/dev/null 2>&1
done
quiet "$status$(diff <(echo "$before") <(everything) || true)"

# The rpm program is this machine's, the scripts run inside.
rpm_inside() { rpm --root "$root" --nodeps "$@" 2>&1 | grep -vE 'use Alien instead|assuming you know' || true; }

begin "rpm without a running systemd"
said=$(rpm_inside -i "$rpm")
rpm_inside -q codex-authd >/dev/null || status=missing
grep -q "systemd does not run here" <<<"$said" && status= || status="it does not say what to do: $said"
quiet "$status$(wanted)$(modes)"

begin "rpm: a version that cannot read the state is refused"
echo 4294967295 >"$root/var/lib/codex-authd/format"
said=$(rpm_inside -U --replacepkgs "$rpm")
grep -q "has format 4294967295" <<<"$said" && grep -q "prein scriptlet failed\|%prein.*failed" <<<"$said" && status= || status=$said
quiet "$status"

begin "rpm: upgraded and erased; state, configuration and choices stay, and it says how to remove them"
echo "$writes" >"$root/var/lib/codex-authd/format"
edit
choose
said=$(rpm_inside -U --replacepkgs "$rpm")
rpm --root "$root" -q codex-authd >/dev/null 2>&1 && status= || status="not installed: $said"
said=$(rpm_inside -e codex-authd)
grep -q "rm -rf /var/lib/codex-authd" <<<"$said" || status="$status; $said"
[ -f "$root/var/lib/codex-authd/format" ] || status="$status; the state is gone"
quiet "$status$(find "$root/usr" -type f -name '*codex-authd*')$(untouched)"

begin "rpm: a new installation uses them"
said=$(rpm_inside -i "$rpm")
quiet "$(diff <(echo "$chosen") <(enabled) || true)$(untouched)$(modes)$(find "$root/var/lib/rpm-state" -name '*codex-authd*')"

begin "rpm: the commands that it prints remove everything"
said=$(rpm_inside -e codex-authd)
inside sh -ec "$(grep '^  rm ' <<<"$said")" 2>&1 || true
left=$(find "$root/etc" "$root/var/lib" -name '*codex-authd*' || true)
said=$(rpm_inside -i "$rpm")
quiet "$left$(wanted)$(near_empty)$(enabled | grep timer || true)"
rpm_inside -e codex-authd >/dev/null
inside rm -rf /var/lib/rpm-state/codex-authd.erased /etc/codex-authd

begin "rpm, from the old layout: an edited configuration is unchanged, and an unedited one is replaced"
cat >"$work/old.spec" <<SPEC
Name: codex-authd
Version: 0.0.9
Release: 1
Summary: old
License: Apache-2.0
BuildArch: x86_64
%description
old
%install
install -D -m 0640 $PWD/packaging/config.toml %{buildroot}/etc/codex-authd/config.toml
%files
%config(noreplace) /etc/codex-authd/config.toml
SPEC
rpmbuild --quiet --target x86_64 -D "_topdir $work/rpmbuild" -D "_rpmdir $work" -D "_build_name_fmt old.rpm" -bb "$work/old.spec" >"$work/rpmbuild.log" 2>&1 \
  && status= || status=$(cat "$work/rpmbuild.log")
for kind in edited unedited; do
  said=$(rpm_inside -i "$work/old.rpm")
  # An .rpmsave from an earlier time is not the file that this upgrade has set aside.
  echo old >"$root/etc/codex-authd/config.toml.rpmsave"
  [ "$kind" = unedited ] || { edit; rm "$root/etc/codex-authd/config.toml.rpmsave"; }
  said=$(rpm_inside -U "$rpm")
  if [ "$kind" = edited ]; then status=$status$(untouched)
  else status=$status$(near_empty)$([ "$(cat "$root/etc/codex-authd/config.toml.rpmsave")" = old ] || echo "the old .rpmsave is gone: $said"); fi
  edit
  said=$(rpm_inside -U --replacepkgs "$rpm")
  rm -f "$root/etc/codex-authd/config.toml.rpmsave"
  status=$status$(untouched)$(modes)
  rpm_inside -e codex-authd >/dev/null
  inside rm -rf /etc/codex-authd
done
quiet "$status"
