//! The appliance: the package installed with apt on a booted Debian, and its life from there to the purge.
//!
//! It is one life in consecutive chapters, because each boot and each installation costs seconds; and a shorter one on
//! the next Debian. Measured values are printed. It needs root, systemd-nspawn, debootstrap and `AUTHD_TEST_PACKAGES`,
//! the directory of the .deb (`make test-package`). If one of them is missing, the test is skipped.

mod callers;
mod choices;
mod copies;
mod fleet;
mod install;
mod leftovers;
mod machine;
mod offline;
mod package;
mod repository;
mod root;
mod service;
mod trust;
mod upgrade;

use std::time::Instant;

use crate::support::network;
use crate::support::skip::skipped;
use fleet::Fleet;
use leftovers::Listing;
use machine::Machine;
use package::Package;
use repository::Repository;
use root::Suite;

#[test]
fn an_appliance_is_installed_serves_is_upgraded_restored_and_leaves_nothing() {
    let begun = Instant::now();
    let Some((machine, package)) = ready(Suite::Bookworm) else { return };
    let tell = |chapter: &str| println!("[{:6.1} s] {chapter}", begun.elapsed().as_secs_f32());

    tell("install");
    let untouched = Listing::of(&machine);
    let repository = Repository::of(&package);
    install::from_nothing(&machine, || repository.install(&machine));
    service::the_units_and_the_journal_are_quiet(&machine);
    let operator = install::Operator::with_the_printed_command(&machine);

    tell("fleet");
    let mut fleet = Fleet::seed(&machine);
    fleet.a_host_is_installed_from_the_dashboard(&operator, "h1.test");
    fleet.the_login_is_proved_under_the_units_hardening();

    tell("service");
    service::the_doctor_is_content(&machine);
    service::it_is_hardened(&machine);
    service::its_cgroup_is_its_own(&fleet);
    trust::a_certificate_of_the_operators_cuts_no_host_off(&fleet, "h1.test");
    service::a_reload_reads_the_certificate_again(&fleet);
    service::a_killed_daemon_comes_back_and_nobody_is_refused(&fleet);
    service::a_daemon_that_hangs_is_replaced(&fleet);
    service::a_daemon_that_cannot_start_is_tried_until_it_can(&fleet);
    service::ports_may_be_opened_again_and_again(&fleet);

    tell("repository");
    repository.upgrades_and_goes_back(&fleet, &package);
    repository.forget(&machine);

    tell("upgrade");
    upgrade::under_load_no_request_fails(&fleet, &package);
    upgrade::back_to_one_that_cannot_read_the_state_is_refused(&fleet, &package);

    tell("copies");
    choices::outlive_a_removal(&fleet, &package);
    copies::the_master_key_may_be_a_credential(&fleet);
    let copy = copies::a_copy_of_the_running_daemon(&fleet);
    copies::the_backup_unit_makes_one_too(&fleet);
    copies::a_purge_leaves_nothing(&machine, &untouched);

    tell("old layout");
    upgrade::from_the_old_layout_unattended(&machine, &package);
    copies::a_purge_leaves_nothing(&machine, &untouched);

    tell("restored");
    copies::restored_on_a_fresh_machine_the_hosts_go_on(&mut fleet, &package, &copy);
    fleet.a_user_who_may_not_remove_cdx_changes_nothing();
    offline::what_root_runs_meanwhile_lets_the_daemon_start(&machine);
    fleet.everybody_goes_on();
    copies::a_purge_leaves_nothing(&machine, &untouched);

    tell("power off");
    drop(fleet);
    machine.power_off();
    tell("done");
}

/// The same program on a newer systemd. The first life covers everything that does not depend on that.
#[test]
fn on_debian_13_it_is_installed_serves_is_upgraded_and_leaves_nothing() {
    let begun = Instant::now();
    let Some((machine, package)) = ready(Suite::Trixie) else { return };
    let tell = |chapter: &str| println!("[{:6.1} s] Debian 13: {chapter}", begun.elapsed().as_secs_f32());

    tell("old layout");
    let untouched = Listing::of(&machine);
    upgrade::from_the_old_layout_unattended(&machine, &package);
    copies::a_purge_leaves_nothing(&machine, &untouched);

    tell("install");
    let repository = Repository::of(&package);
    install::from_nothing(&machine, || repository.install(&machine));
    service::the_units_and_the_journal_are_quiet(&machine);
    let operator = install::Operator::with_the_printed_command(&machine);

    tell("fleet");
    let fleet = Fleet::seed(&machine);
    fleet.a_host_is_installed_from_the_dashboard(&operator, "h1.test");
    fleet.the_login_is_proved_under_the_units_hardening();

    tell("service");
    service::the_doctor_is_content(&machine);
    service::it_is_hardened(&machine);
    service::a_daemon_that_cannot_start_is_tried_until_it_can(&fleet);
    service::ports_may_be_opened_again_and_again(&fleet);

    tell("repository");
    repository.upgrades_and_goes_back(&fleet, &package);
    repository.forget(&machine);

    tell("removal, credential, purge");
    choices::outlive_a_removal(&fleet, &package);
    copies::the_master_key_may_be_a_credential(&fleet);
    fleet.a_user_who_may_not_remove_cdx_changes_nothing();
    copies::a_purge_leaves_nothing(&machine, &untouched);

    tell("commands of root's");
    install::put(&machine, &package);
    offline::what_root_runs_meanwhile_lets_the_daemon_start(&machine);
    copies::a_purge_leaves_nothing(&machine, &untouched);

    tell("power off");
    drop(fleet);
    machine.power_off();
    tell("done");
}

/// A booted machine and the package, or the reason for a skip.
fn ready(suite: Suite) -> Option<(Machine, Package)> {
    let tried = || {
        let package = Package::under_test()?;
        if !nix::unistd::geteuid().is_root() {
            return Err("no container is booted without root".into());
        }
        let image = root::image(suite)?;
        if !network::leave() {
            return Err("see above".into());
        }
        let begun = Instant::now();
        let machine = Machine::boot(&image)?;
        println!("booted in {:?}", begun.elapsed());
        Ok((machine, package))
    };
    tried().map_err(|reason: String| skipped(format!("no appliance: {reason}"))).ok()
}
