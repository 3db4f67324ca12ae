//! The last lines of a first installation: the addresses in them answer.

use std::net::{TcpListener, TcpStream};
use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/scripts/closing.sh");

/// The output of `line` in a shell with the script's own functions.
fn printed(line: &str) -> Vec<String> {
    let output = Command::new("sh").args(["-euc", &format!(". '{SCRIPT}'; {line}")]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}

#[test]
fn the_addresses_that_are_printed_answer() {
    for bound in ["[::]:0", "0.0.0.0:0", "127.0.0.1:0"] {
        let listener = TcpListener::bind(bound).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (ip, port) = address.rsplit_once(':').unwrap();
        let addresses = printed(&format!("closing_addresses '{ip}'"));
        println!("{bound}: {addresses:?}");
        for address in &addresses {
            TcpStream::connect(format!("{address}:{port}")).unwrap_or_else(|error| panic!("{address}:{port}: {error}"));
        }
        if bound == "127.0.0.1:0" {
            assert_eq!(addresses, ["127.0.0.1"]);
        }
    }
}

#[test]
fn no_address_is_printed_of_a_family_that_is_not_served() {
    const HOSTNAME: &str = "hostname() { echo '192.0.2.7 2001:db8::7 fe80::1 172.17.0.1'; }";
    assert_eq!(printed(&format!("{HOSTNAME}; closing_addresses 0.0.0.0")), ["192.0.2.7"]);
    assert_eq!(printed(&format!("{HOSTNAME}; closing_addresses '[::]'")), ["192.0.2.7", "[2001:db8::7]"]);
}

#[test]
fn the_name_of_the_machine_is_printed_only_where_it_leads_to_one_of_the_addresses() {
    let resolved = |to: &str, addresses: &str| {
        printed(&format!("getent() {{ printf '{to}'; }}; closing_name box.test \"$(printf '{addresses}')\""))
    };
    assert_eq!(resolved("192.0.2.7 STREAM box.test\\n192.0.2.7 DGRAM\\n", "192.0.2.7\\n[2001:db8::7]"), ["box.test"]);
    assert_eq!(resolved("2001:db8::7 STREAM box.test\\n", "192.0.2.7\\n[2001:db8::7]"), ["box.test"]);
    // Debian's default: the name resolves to the machine itself, only on the machine itself.
    assert!(resolved("127.0.1.1 STREAM box.test\\n", "192.0.2.7").is_empty());
    assert!(resolved("192.0.2.70 STREAM box.test\\n", "192.0.2.7").is_empty());
    assert!(resolved("", "192.0.2.7").is_empty());
}
