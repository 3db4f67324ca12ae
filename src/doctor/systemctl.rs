//! Asks systemd about our units: one call with a time limit.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub const SERVICE: &str = "codex-authd.service";
pub const SOCKET: &str = "codex-authd.socket";

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
const PROPERTIES: &str = "--property=Id,LoadState,ActiveState,SubState,NRestarts,User,Group,SupplementaryGroups,Environment,EnvironmentFiles,\
                          ProtectHome,PrivateTmp,Listen";

/// Returns the properties of both units, as `systemctl show` prints them. `None` if there is no systemd.
///
/// # Errors
///
/// If there was no answer in time.
pub fn show() -> io::Result<Option<String>> {
    let mut command = Command::new("systemctl");
    command.args(["show", "--no-pager", PROPERTIES, SERVICE, SOCKET]).env("LC_ALL", "C");
    output_of(command, ANSWER_TIMEOUT)
}

fn output_of(mut command: Command, bound: Duration) -> io::Result<Option<String>> {
    let until = Instant::now() + bound;
    let mut child = match command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let read = child.stdout.take().map(|output| read_until(output, until)).unwrap_or_else(|| Ok(Vec::new()));
    if read.is_err() {
        child.kill()?;
    }
    let is_done = child.wait()?.success();
    read.map(|answer| is_done.then(|| String::from_utf8_lossy(&answer).into_owned()))
}

fn read_until(mut output: std::process::ChildStdout, until: Instant) -> io::Result<Vec<u8>> {
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while answer.len() <= MAX_ANSWER_BYTES {
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Err(nix::errno::Errno::EINTR) => continue,
            polled => polled?,
        };
        match output.read(&mut part)? {
            0 => return Ok(answer),
            length => answer.extend_from_slice(part.get(..length).unwrap_or_default()),
        }
    }
    Err(io::Error::other("the answer is too long"))
}

/// Returns the values of a property of one unit, in the order of the answer. A list of structures has one line for
/// each.
pub fn property<'a>(answer: &'a str, unit: &str, name: &str) -> Vec<&'a str> {
    let is_of_unit = |block: &&str| block.lines().any(|line| line.strip_prefix("Id=") == Some(unit));
    let lines = answer.split("\n\n").filter(is_of_unit).flat_map(str::lines);
    let values = lines.filter_map(|line| line.split_once('=').filter(|(known, _)| *known == name));
    values.map(|(_, value)| value).filter(|value| !value.is_empty()).collect()
}

/// Splits a list into words. Words with characters that are special in a shell are quoted, with escapes.
pub fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), None::<String>, false);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            ' ' if !is_quoted => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(rest.next().map(|escaped| match escaped {
                'n' => '\n',
                't' => '\t',
                other => other,
            })),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, bound: Duration) -> io::Result<Option<String>> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        output_of(command, bound)
    }

    #[test]
    fn an_answer_is_waited_for_no_longer_than_the_bound() {
        let begun = Instant::now();
        let error = shell("exec tail -f /dev/null", Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert_eq!(shell("echo Id=x", ANSWER_TIMEOUT).unwrap().as_deref(), Some("Id=x\n"));
        assert_eq!(shell("echo Id=x; exit 1", ANSWER_TIMEOUT).unwrap(), None);
        assert_eq!(output_of(Command::new("/nowhere/systemctl"), ANSWER_TIMEOUT).unwrap(), None);
        assert!(shell("exec yes", ANSWER_TIMEOUT).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn properties_and_lists_are_read_as_systemctl_prints_them() {
        let answer = "Environment=A=b \"C=d \\\"e\\$\" F=\nId=a.service\n\nListen=[::]:1 (Stream)\nListen=[::]:2 (Stream)\nId=a.socket\n";
        assert_eq!(property(answer, "a.socket", "Listen"), ["[::]:1 (Stream)", "[::]:2 (Stream)"]);
        assert!(property(answer, "a.service", "Listen").is_empty());
        assert_eq!(words(property(answer, "a.service", "Environment")[0]), ["A=b", "C=d \"e$", "F="]);
    }
}
