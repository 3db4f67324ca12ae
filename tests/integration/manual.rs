//! The manual pages and the completions of the binary: checked by man and mandoc, tried in a real bash and a real zsh.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::daemon::BINARY;

/// Runs it without a configuration, a home or a daemon.
fn bare(arguments: &[&str]) -> Output {
    let output = Command::new(BINARY).env_clear().args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn pages(directory: &Path) -> Vec<PathBuf> {
    bare(&["man", directory.to_str().unwrap()]);
    let mut pages: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    assert!(pages.len() > 20, "{pages:?}");
    pages
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn man_and_mandoc_have_nothing_to_say_of_any_page() {
    let directory = tempfile::tempdir().unwrap();
    for page in pages(directory.path()) {
        let mut man = Command::new("man");
        man.env("LC_ALL", "C.UTF-8").env("MANROFFSEQ", "").env("MANWIDTH", "80");
        let shown = man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"]).arg(&page).output().unwrap();
        assert!(shown.status.success() && shown.stderr.is_empty(), "{}: {}", page.display(), said(&shown).len());
        let lint = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&page).output().unwrap();
        assert!(lint.status.success() && lint.stdout.is_empty(), "{}: {}", page.display(), said(&lint));
    }
}

#[test]
fn the_pages_are_the_same_bytes_every_time() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (left, right) in pages(one.path()).iter().zip(pages(other.path())) {
        assert_eq!(left.file_name(), right.file_name());
        assert_eq!(std::fs::read(left).unwrap(), std::fs::read(right).unwrap());
    }
}

#[test]
fn a_page_tells_what_a_command_can_do() {
    let directory = tempfile::tempdir().unwrap();
    pages(directory.path());
    let shown = |page: &str| {
        let page = directory.path().join(page);
        let mut man = Command::new("mandoc");
        let text = man.args(["-T", "utf8", "-O", "width=200"]).arg(page).output().unwrap();
        // Bold is a letter printed twice.
        let mut plain = String::new();
        for letter in String::from_utf8(text.stdout).unwrap().chars() {
            if letter == '\u{8}' {
                plain.pop();
            } else {
                plain.push(letter)
            }
        }
        plain
    };
    let hosts = shown("codex-authd-hosts.1");
    for wanted in ["codex-authd hosts add [--insecure]", "A shared machine", "EXAMPLES", "codex-authd-config(5)"] {
        assert!(hosts.contains(wanted), "{wanted}: {hosts}");
    }
    let config = shown("codex-authd-config.5");
    for wanted in ["SECTION [listen]", "proxy_protocol = false", "CODEX_AUTHD_LISTEN__PROXY_PROTOCOL"] {
        assert!(config.contains(wanted), "{wanted}: {config}");
    }
}

/// Writes the script of `shell` into a directory with a file to complete.
fn script(shell: &str, directory: &Path) -> PathBuf {
    let path = directory.join(format!("completions.{shell}"));
    std::fs::write(&path, bare(&["completions", shell]).stdout).unwrap();
    std::fs::write(directory.join("login.json"), "{}").unwrap();
    path
}

const TYPED: [(&str, &str); 8] = [
    ("codex-authd hosts a", "add"),
    ("codex-authd check", "check-config"),
    ("codex-authd doc", "doctor"),
    ("codex-authd admin-cert --ou", "--out"),
    ("codex-authd runner d", "doctor"),
    ("codex-authd hosts add --ins", "--insecure"),
    ("codex-authd --config log", "login.json"),
    ("codex-authd completions z", "zsh"),
];

#[test]
fn bash_completes_commands_options_and_files() {
    let directory = tempfile::tempdir().unwrap();
    let script = script("bash", directory.path());
    for (typed, wanted) in TYPED {
        let words: Vec<&str> = typed.split(' ').collect();
        let ask = format!(
            "source '{}'; [[ $(complete -p codex-authd) =~ -F\\ ([^ ]+) ]]; COMP_WORDS=({typed}); COMP_CWORD={}; \
             ${{BASH_REMATCH[1]}} codex-authd '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let mut bash = Command::new("bash");
        let answer = bash.current_dir(directory.path()).args(["--norc", "-c", &ask]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), wanted, "{typed}: {}", said(&answer));
    }
}

/// A zsh on its own terminal, with Tab as a key; checks the line afterwards.
#[test]
fn zsh_completes_commands_options_and_files() {
    let directory = tempfile::tempdir().unwrap();
    let functions = directory.path().join("functions");
    std::fs::create_dir(&functions).unwrap();
    std::fs::rename(script("zsh", directory.path()), functions.join("_codex-authd")).unwrap();
    for (typed, wanted) in TYPED {
        let kept: Vec<&str> = typed.rsplitn(2, ' ').collect();
        let harness = format!(
            "zmodload zsh/zpty; zpty -b z zsh -f -i
             zpty -w z \"cd '{directory}'; PS1=; PROMPT_EOL_MARK=; fpath=('{functions}' \\$fpath); autoload -Uz compinit; compinit -u -d '{directory}/dump'\"
             zpty -w z 'show() {{ print -r -- \"<<$BUFFER>>\" >>{directory}/line; }}; zle -N show; bindkey \"^X\" show'
             zpty -w -n z $'{typed}\\t\\C-x'
             while ! [[ -s '{directory}/line' ]]; do zpty -r -t z _; sleep 0.05; (( ++n < 600 )) || break; done
             zpty -d z; cat '{directory}/line'; rm -f '{directory}/line'",
            directory = directory.path().display(),
            functions = functions.display(),
        );
        let answer = Command::new("zsh").args(["-f", "-c", &harness]).stdin(Stdio::null()).output().unwrap();
        let shown = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        // zsh adds a `=` after an option with a value.
        let ends = [" ", "="].map(|end| format!("<<{} {wanted}{end}>>", kept[1]));
        assert!(ends.contains(&shown), "{typed}: {shown}: {}", said(&answer));
    }
}

#[test]
fn fish_gets_a_script_that_names_every_command() {
    let script = String::from_utf8(bare(&["completions", "fish"]).stdout).unwrap();
    for command in ["doctor", "hosts", "completions"] {
        assert!(script.contains(&format!("-a \"{command}\"")), "{command}");
    }
}
