//! A network for one test, whose cable can be pulled: no packet arrives, no connection is reset, no end gets a notice.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

pub const HERE: &str = "10.77.0.1";
pub const THERE: &str = "10.77.0.2";
const ADDRESS: &str = "02:00:00:00:00:02";

/// The command prefix to run a program in its own network namespace.
pub fn apart() -> Vec<String> {
    ["unshare", "--net"].map(String::from).into()
}

/// The cable between the test and a process that runs [`apart`].
pub struct Cable {
    process: String,
}

/// From here on this thread, and every process that it starts, has its own network. `false`, with the reason printed,
/// if that is not possible.
pub fn leave() -> bool {
    let left = unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string());
    match left.and_then(|()| run("ip", "link set lo up")) {
        Ok(()) => true,
        Err(reason) => {
            super::skip::skipped(format!("no network of the test's own: {reason}"));
            false
        }
    }
}

impl Cable {
    pub fn to(process: u32) -> Self {
        let cable = Self { process: process.to_string() };
        run("ip", &format!("link add here type veth peer name there address {ADDRESS} netns {process}")).unwrap();
        cable.there(&format!("addr add {THERE}/24 dev there"));
        cable.there("link set there up");
        run("ip", &format!("addr add {HERE}/24 dev here")).unwrap();
        run("ip", "link set here up").unwrap();
        // Otherwise this side would notice that the address does not answer.
        run("ip", &format!("neigh replace {THERE} lladdr {ADDRESS} dev here nud permanent")).unwrap();
        cable
    }

    pub fn pull(&self) {
        self.there("link set there down");
    }

    pub fn plug_in(&self) {
        self.there("link set there up");
    }

    fn there(&self, line: &str) {
        run("nsenter", &format!("--net --target {} ip {line}", self.process)).unwrap();
    }
}

fn run(program: &str, line: &str) -> Result<(), String> {
    let output = Command::new(program).args(line.split(' ')).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success().then_some(()).ok_or_else(|| format!("{program} {line}: {said}"))
}
