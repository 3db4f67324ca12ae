//! Builds disk states of a workload and checks them, two at a time.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use super::check::{Findings, check, with_last_words};
use super::clients::Kind;
use super::cuts::Cuts;
use super::disk::Disk;
use super::ledger::{Expectations, Ledger, Positions};
use super::log::Log;
use super::tree::Tree;
use super::workload::{Workload, begin_log, daemon, work};
use crate::support::daemon::Daemon;
use crate::support::random::Random;
use crate::support::record_disk::Recorder;

/// One in this many states is cut twice.
const ONE_IN: u64 = 4;
const WORKERS: usize = 2;
/// Number of failed states whose files are kept. The log can rebuild the others.
const KEPT: usize = 5;
const FINDINGS_SHOWN: usize = 4;
/// The workload between the first and the second cut.
const SECOND_CLIENTS: [(Kind, u64); 2] = [(Kind::Store, 3), (Kind::Enrol, 6)];
const SECOND_CALLS: u64 = 60;
/// The daemon compares it to detect a reboot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

pub struct States<'a> {
    pub workload: &'a Workload,
    pub program: &'a Path,
    pub recorder: &'a Recorder,
    pub tally: Tally,
    kept: AtomicUsize,
}

/// Number of states by result.
#[derive(Default)]
pub struct Tally {
    pub states: AtomicUsize,
    pub lost: AtomicUsize,
    pub half_applied: AtomicUsize,
    pub refused: AtomicUsize,
    pub panics: AtomicUsize,
    twice: AtomicUsize,
}

impl Tally {
    fn add(&self, findings: &Findings) {
        self.states.fetch_add(1, Ordering::SeqCst);
        let lists = [
            (&self.lost, &findings.lost),
            (&self.half_applied, &findings.half_applied),
            (&self.refused, &findings.refused),
            (&self.panics, &findings.panics),
        ];
        for (count, list) in lists {
            count.fetch_add(usize::from(!list.is_empty()), Ordering::SeqCst);
        }
    }

    pub fn add_all(&self, other: &Self) {
        for (count, more) in self.counts().into_iter().zip(other.counts()) {
            count.fetch_add(more.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    fn counts(&self) -> [&AtomicUsize; 6] {
        [&self.states, &self.lost, &self.half_applied, &self.refused, &self.panics, &self.twice]
    }

    pub fn failures(&self) -> usize {
        self.counts()[1..5].iter().map(|count| count.load(Ordering::SeqCst)).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [states, lost, half, refused, panics, twice] = self.counts().map(|count| count.load(Ordering::SeqCst));
        write!(
            f,
            "{states} states ({twice} cut twice): {lost} lost, {half} half applied, {refused} refused boots, {panics} panics"
        )
    }
}

/// A disk state after a cut.
struct State {
    seed: u64,
    cut: usize,
    tree: Tree,
    random: Random,
}

impl<'a> States<'a> {
    pub fn new(workload: &'a Workload, program: &'a Path, recorder: &'a Recorder) -> Self {
        Self { workload, program, recorder, tally: Tally::default(), kept: AtomicUsize::new(0) }
    }

    /// Checks `count` states chosen by `seed`.
    pub fn examine(&self, seed: u64, count: usize) {
        let cuts = Cuts::of(&self.workload.log);
        let mut random = Random(seed);
        let mut chosen: Vec<(usize, u64)> = (0..count)
            .map(|_| {
                let seed = random.next();
                (cuts.choose(&mut Random(seed)), seed)
            })
            .collect();
        // In the order of the log, so that it is followed once.
        chosen.sort_unstable();
        self.examine_these(&chosen);
    }

    /// Checks the state with this seed, as [`Self::examine`] builds it.
    pub fn examine_one(&self, seed: u64) {
        self.examine_these(&[(Cuts::of(&self.workload.log).choose(&mut Random(seed)), seed)]);
    }

    fn examine_these(&self, chosen: &[(usize, u64)]) {
        let (sender, receiver) = sync_channel(1);
        let receiver = Mutex::new(receiver);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| self.work(&receiver))).collect();
            let mut disk = self.workload.new_disk();
            for (cut, seed) in chosen {
                disk.follow(*cut);
                let mut random = Random(*seed);
                random.next();
                let tree = disk.cut(&mut random);
                // Fails only after a worker panicked; `join` reports that.
                if sender.send(State { seed: *seed, cut: *cut, tree, random }).is_err() {
                    break;
                }
            }
            drop(sender);
            workers.into_iter().for_each(|worker| worker.join().unwrap());
        });
    }

    fn work(&self, states: &Mutex<Receiver<State>>) {
        loop {
            let next = states.lock().unwrap().recv();
            let Ok(mut state) = next else { return };
            let expected = self.workload.ledger.at_cut(&self.workload.positions, state.cut);
            if state.random.below(ONE_IN) == 0 {
                self.cut_again(&mut state, expected);
                continue;
            }
            let mut daemon = self.boots_on(&state.tree);
            let findings = check(&mut daemon, &expected, &mut state.random);
            daemon.kill();
            self.report(&state, &state.tree, &daemon, &findings, "");
        }
    }

    /// A daemon on this state. It sees another boot id: the machine was rebooted.
    fn boots_on(&self, tree: &Tree) -> Daemon {
        let mut daemon = daemon(self.program, &fast_directory());
        tree.write(&daemon.state_dir());
        let boot_id = daemon.state.path().join("boot_id");
        std::fs::write(&boot_id, format!("{}\n", uuid::Uuid::new_v4())).unwrap();
        daemon.within = rebooted(&boot_id);
        daemon
    }

    /// The daemon recovers from the first cut and works. The second cut is anywhere in that.
    fn cut_again(&self, state: &mut State, expected: Expectations<'_>) {
        self.tally.twice.fetch_add(1, Ordering::SeqCst);
        let second = self.workload.directory.join(format!("second-{}", state.seed));
        // A kept run already has the log of this recovery.
        let is_kept = second.exists();
        if !is_kept && let Err((daemon, findings)) = self.record_second(state, &second) {
            return self.report(state, &state.tree, &daemon, &findings, " (while it recovered and worked)");
        }
        let ledger: Ledger = serde_json::from_slice(&std::fs::read(second.join("ledger.json")).unwrap()).unwrap();
        let log = Arc::new(Log::read(&second.join("log")));
        let inodes = log.inodes();
        let (first, listening) = (inodes.len(), log.position_of("listening").unwrap());
        let cut = match state.random.flips(0.4) {
            true => first + state.random.index(listening + 1 - first),
            false => Cuts::of(&log).choose(&mut state.random).max(first),
        };
        let mut disk = Disk::new(Arc::clone(&log), &state.tree, &inodes);
        disk.follow(cut);
        let tree = disk.cut(&mut state.random);
        let mut daemon = self.boots_on(&tree);
        let positions = Positions::of(&log);
        let expected = expected.and_then(ledger.at_cut(&positions, cut));
        let findings = check(&mut daemon, &expected, &mut state.random);
        daemon.kill();
        let when = format!(
            ", and again after {} events, of which {} were its recovery and {} came after",
            cut - first,
            listening - first,
            log.events.len() - listening
        );
        self.report(state, &tree, &daemon, &findings, &when);
        if findings.is_empty() && !is_kept {
            std::fs::remove_dir_all(&second).unwrap();
        }
    }

    /// Records recovery and work. Fails with the findings if the daemon fails.
    fn record_second(&self, state: &mut State, second: &Path) -> Result<(), (Daemon, Findings)> {
        std::fs::create_dir(second).unwrap();
        let mut daemon = self.boots_on(&state.tree);
        let log = second.join("log");
        self.recorder.arm(&mut daemon, &log);
        let marks = begin_log(&log, &daemon.state_dir());
        let mut findings = Findings::default();
        match daemon.try_launch() {
            Err(refused) => findings.refused.push(with_last_words(&refused, &daemon)),
            Ok(()) => {
                marks.mark("listening");
                let (ledger, errors) = work(&daemon, marks, &SECOND_CLIENTS, SECOND_CALLS, 1, &mut Random(!state.seed));
                findings.refused = errors;
                std::fs::write(second.join("ledger.json"), serde_json::to_vec(&ledger).unwrap()).unwrap();
            }
        }
        daemon.kill();
        findings.note_panics(&daemon);
        if findings.is_empty() { Ok(()) } else { Err((daemon, findings)) }
    }

    fn report(&self, state: &State, tree: &Tree, daemon: &Daemon, findings: &Findings, again: &str) {
        self.tally.add(findings);
        if findings.is_empty() {
            return;
        }
        let run = &self.workload.directory;
        let number = self.kept.fetch_add(1, Ordering::SeqCst);
        let mut text = format!(
            "power: cut after {} of {} events{again}; again: AUTHD_POWER_RUN={} AUTHD_POWER_STATE={} AUTHD_POWER_DAEMON={} \
             cargo test --test integration -- --ignored --nocapture power::many_states\n",
            state.cut,
            self.workload.log.events.len(),
            run.display(),
            state.seed,
            self.program.display(),
        );
        if number < KEPT {
            let kept = run.join(format!("state-{}-{number}", state.seed));
            tree.write(&kept);
            std::fs::write(kept.with_extension("log"), daemon.log()).unwrap();
            text.push_str(&format!("  the state is in {}\n", kept.display()));
        }
        for (kind, finding) in findings.all().take(FINDINGS_SHOWN) {
            text.push_str(&format!("  {kind}: {}\n", finding.chars().take(400).collect::<String>()));
        }
        // One write, so that the lines of two workers do not mix.
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
    }
}

/// A directory in memory if the machine has one: states are written and synced very often.
fn fast_directory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if tempfile::tempfile_in(memory).is_ok() { memory.into() } else { std::env::temp_dir() }
}

/// A command that runs its arguments in a mount namespace with this boot id.
fn rebooted(boot_id: &Path) -> Vec<String> {
    let script = format!("mount --bind \"$0\" {BOOT_ID} && exec \"$@\"");
    ["unshare", "-m", "sh", "-c", &script, boot_id.to_str().unwrap()].map(String::from).into()
}

/// Why the boot id cannot be replaced here, or `None`.
pub fn cannot_reboot() -> Option<String> {
    let id = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(id.path(), "another\n").unwrap();
    let command = rebooted(id.path());
    match Command::new(&command[0]).args(&command[1..]).args(["cat", BOOT_ID]).output() {
        Ok(output) if output.stdout == b"another\n" => None,
        Ok(output) => {
            Some(format!("nothing can be mounted over {BOOT_ID}: {}", String::from_utf8_lossy(&output.stderr)))
        }
        Err(error) => Some(format!("unshare: {error}")),
    }
}
