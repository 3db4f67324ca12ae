//! An operator adds their own certificate, and removes it again: no host is cut off.

use super::fleet::Fleet;
use super::service::the_doctor_says;
use crate::support::authority::authority;
use crate::support::eventually;

const FILES: &str = "/etc/codex-authd/tls";
const AUTHORITY: &str = "/usr/local/share/ca-certificates/company.crt";

pub fn a_certificate_of_the_operators_cuts_no_host_off(fleet: &Fleet, fqdn: &str) {
    let machine = fleet.machine;
    let (ca, certificate, key) = authority("localhost");
    machine.write(AUTHORITY, &ca);
    machine.done(&["update-ca-certificates"]);
    machine.write(&format!("{FILES}/certificate.pem"), &certificate);
    machine.write(&format!("{FILES}/key.pem"), &key);
    machine.done(&["chown", "-R", "root:codex-authd", FILES]);
    machine.done(&["chmod", "0640", &format!("{FILES}/key.pem")]);
    fleet.configure(&format!("[tls]\ncertificate = \"{FILES}/certificate.pem\"\nprivate_key = \"{FILES}/key.pem\"\n"));

    // Each host trusts only the daemon's own certificate, and still gets it.
    fleet.everybody_goes_on();
    let (verdict, found) = trust_of_hosts(fleet);
    assert!(verdict == "weak" && found.contains(fqdn), "{verdict} {found}");
    assert!(!is_shown(fleet, &ca));

    // Hosts that only call have no cdx to update; the daemon does not wait for disabled hosts.
    let callers = callers(fleet);
    for caller in &callers {
        machine.done(&["codex-authd", "hosts", "disable", caller]);
    }
    for command in ["cdx --update", "cdx --sync"] {
        let ran = machine.bash(command);
        assert_eq!(ran.code, Some(0), "{command}: {ran:?}");
    }
    eventually("hosts get the operator's certificate", || is_shown(fleet, &ca).then_some(()));
    fleet.the_host_goes_on();
    assert_eq!(trust_of_hosts(fleet).0, "good");

    // Back again.
    fleet.configure("");
    assert!(!is_shown(fleet, &ca));
    for caller in &callers {
        machine.done(&["codex-authd", "hosts", "enable", caller]);
    }
    fleet.everybody_goes_on();
    machine.done(&["rm", "-r", FILES, AUTHORITY]);
    machine.done(&["update-ca-certificates", "--fresh"]);
}

fn callers(fleet: &Fleet) -> Vec<String> {
    let listed = fleet.machine.authd(&["hosts", "list"]);
    let names = listed["hosts"].as_array().unwrap().iter().map(|host| host["fqdn"].as_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("caller-")).collect()
}

/// The verdict of `doctor`, and its finding.
fn trust_of_hosts(fleet: &Fleet) -> (String, String) {
    let checks = the_doctor_says(fleet.machine, "trust of hosts");
    let [check] = &checks[..] else { panic!("{checks:?}") };
    (check["verdict"].as_str().unwrap().into(), check["found"].as_str().unwrap().into())
}

/// Whether the hosts' listener shows a certificate of this authority.
pub fn is_shown(fleet: &Fleet, ca: &str) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = fleet.client(Some(ca)).build().unwrap();
    runtime.block_on(async { client.get("https://localhost:8443/healthz").send().await.is_ok() })
}
