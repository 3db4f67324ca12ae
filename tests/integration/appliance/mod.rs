//! The appliance: the package installed with apt on a booted Debian, and its life from there to the purge.
//!
//! It is one life, told in chapters that build on one another, since each boot and each installation costs seconds. What
//! is measured is printed. It needs root, systemd-nspawn, debootstrap and `AUTHD_TEST_PACKAGES`, the directory of the .deb
//! (`make test-package`); where one of them is missing it says so and is over.

mod callers;
mod copies;
mod fleet;
mod install;
mod leftovers;
mod machine;
mod package;
mod root;
mod service;
mod upgrade;

use std::time::Instant;

use crate::support::network;
use crate::support::skip::skipped;
use fleet::Fleet;
use leftovers::Listing;
use machine::Machine;
use package::Package;

#[test]
fn an_appliance_is_installed_serves_is_upgraded_restored_and_leaves_nothing() {
    let begun = Instant::now();
    let Some((machine, package)) = ready() else { return };
    let tell = |chapter: &str| println!("[{:6.1} s] {chapter}", begun.elapsed().as_secs_f32());

    tell("install");
    let untouched = Listing::of(&machine);
    install::from_nothing(&machine, &package);
    let operator = install::Operator::with_the_printed_command(&machine);

    tell("fleet");
    let mut fleet = Fleet::seed(&machine);
    fleet.a_host_is_installed_from_the_dashboard(&operator, "h1.test");
    fleet.the_login_is_proved_under_the_units_hardening();

    tell("service");
    service::the_doctor_is_content(&machine);
    service::it_is_hardened(&machine);
    service::its_cgroup_is_its_own(&fleet);
    service::a_reload_reads_the_certificate_again(&fleet);
    service::a_killed_daemon_comes_back_and_nobody_is_refused(&fleet);
    service::a_daemon_that_hangs_is_replaced(&fleet);

    tell("upgrade");
    upgrade::under_load_no_request_fails(&fleet, &package);
    upgrade::back_to_one_that_cannot_read_the_state_is_refused(&fleet, &package);

    tell("copies");
    copies::removed_and_installed_again_it_goes_on(&fleet, &package);
    copies::the_master_key_may_be_a_credential(&fleet);
    let copy = copies::a_copy_of_the_running_daemon(&fleet);
    copies::the_backup_unit_makes_one_too(&fleet);
    copies::a_purge_leaves_nothing(&fleet, &untouched);
    copies::restored_on_a_fresh_machine_the_hosts_go_on(&mut fleet, &package, &copy);
    copies::a_purge_leaves_nothing(&fleet, &untouched);

    tell("power off");
    drop(fleet);
    machine.power_off();
    tell("done");
}

/// A booted machine and the package; or why not.
fn ready() -> Option<(Machine, Package)> {
    let tried = || {
        let package = Package::under_test()?;
        if !nix::unistd::geteuid().is_root() {
            return Err("no container is booted without root".into());
        }
        let image = root::image()?;
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
