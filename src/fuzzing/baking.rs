//! Target `baking`: a real shell reads the values baked into a host's scripts unchanged, and executes no part of them.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::process::{Command, Output, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::model::secret::Secret;
use crate::service::hosts::bake::{self, BakeError, Values};

const BEGIN: &str = "# --- baked: begin";
const END: &str = "\n# --- baked: end\n";

/// The values are separated by the byte 0xff, which UTF-8 text never contains. Missing values are empty. One shell
/// reads all of them, and the surplus parts as quoted words.
pub fn baking(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let parts: Option<Vec<&str>> =
        rest.split(|byte| *byte == 0xff).map(|part| std::str::from_utf8(part).ok()).collect();
    let Some(parts) = parts else { return };
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    let api_key = Secret::new(part(1));
    let values = Values {
        base_url: part(0),
        api_key: &api_key,
        fqdn: part(2),
        ca_pem: part(3),
        trusts_system: choice & 4 != 0,
        codex_release_url: part(4),
        codex_npm: part(5),
        codex_release_sha256: part(6),
        programs: part(7),
    };
    let nul = (0..8).any(|at| part(at).contains('\0'));
    let line_break = [0, 1, 2, 4, 5, 6, 7].iter().any(|at| part(*at).contains('\n'));
    let (wrapper, installer) = match (bake::wrapper(&values), bake::installer(&values)) {
        (Ok(wrapper), Ok(installer)) => (wrapper, installer),
        (Err(BakeError::Nul(_)), Err(BakeError::Nul(_))) if nul => return,
        (Err(BakeError::LineBreak(_)), Err(BakeError::LineBreak(_))) if line_break => return,
        (wrapper, installer) => panic!("{:?} {:?}", wrapper.err(), installer.err()),
    };
    assert!(!nul && !line_break);

    // Baking changes only the block. Only the shell may split the block into lines.
    let plain = bake::wrapper(&Values {
        base_url: "",
        api_key: &Secret::new(""),
        fqdn: "",
        ca_pem: "",
        trusts_system: false,
        codex_release_url: "",
        codex_npm: "",
        codex_release_sha256: "",
        programs: "",
    });
    let plain = plain.expect("empty values can be baked");
    assert_eq!(tail(wrapper.expose()), tail(plain.expose()));

    let base_url = part(0).trim_end_matches('/');
    let mut script = String::new();
    let mut expected = Vec::new();
    let mut print = |script: &mut String, name: &str, value: &str| {
        script.push_str(&format!("printf '%s\\0' \"${name}\"\n"));
        expected.extend(value.bytes().chain([0]));
    };
    script.push_str(block(installer.expose()));
    print(&mut script, "CDX_BASE_URL", base_url);
    print(&mut script, "CDX_FQDN", part(2));
    print(&mut script, "CDX_PROGRAMS", part(7));
    print(&mut script, "CDX_SCRIPT", wrapper.expose());
    script.push_str(block(wrapper.expose()));
    for (name, value) in [
        ("CDX_BASE_URL", base_url),
        ("CDX_API_KEY", part(1)),
        ("CDX_FQDN", part(2)),
        ("CDX_CA_PEM", part(3)),
        ("CDX_SYSTEM_CA", if values.trusts_system { "1" } else { "" }),
        ("CDX_WRAPPER_VERSION", bake::wrapper_version(values.trusts_system)),
        ("CDX_CODEX_RELEASE_URL", part(4)),
        ("CDX_CODEX_RELEASE_SHA256", part(6)),
        ("CDX_CODEX_NPM", if part(5).is_empty() { "@openai/codex" } else { part(5) }),
    ] {
        print(&mut script, name, value);
    }
    // Check the quoting before a shell reads it.
    for value in &parts {
        if let Ok(quoted) = bake::sh_quote(value) {
            assert_eq!(as_one_word(&quoted).as_deref(), Some(*value));
        }
    }
    for word in parts.iter().skip(6) {
        if let Ok(quoted) = bake::sh_quote(word) {
            script.push_str(&format!("word={quoted}\n"));
            print(&mut script, "word", word);
        }
    }
    script.push_str(&bake::refusal(&parts.concat()).replace("exit 1", "exit 3"));

    let shell: &[&str] = match choice % 4 {
        0 => &["sh"],
        1 => &["bash", "--norc", "--posix", "-r"],
        _ => &["bash", "--norc", "-r"],
    };
    let output = run(shell, &script);
    assert!(output.stdout == expected, "{shell:?} reads {:?}", String::from_utf8_lossy(&output.stdout));
    // Standard error must have one line, the reason. Any executed value would add an error, because no command can be
    // found.
    let reason: String = parts.concat().chars().filter(|c| !c.is_control() && !"\"$`\\!".contains(*c)).collect();
    if shell != ["sh"] {
        // `echo` in other shells interprets escapes. None are left, but -n and -e are still options.
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_option = reason.starts_with('-') && reason[1..].chars().all(|c| "neE".contains(c));
        assert!(said == format!("{reason}\n") || is_option, "{said:?}");
    }
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));

    // Sometimes check the syntax of both whole scripts, without running them.
    if choice >= 0xf0 {
        for script in [&wrapper, &installer] {
            let output = run(&["bash", "--norc", "-n"], script.expose());
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        }
    }
}

/// The value of a word that consists of single-quoted parts and escaped single quotes. `None` for any other word.
fn as_one_word(mut word: &str) -> Option<String> {
    let mut text = String::new();
    while !word.is_empty() {
        if let Some(rest) = word.strip_prefix("\\'") {
            text.push('\'');
            word = rest;
        } else {
            let (inner, rest) = word.strip_prefix('\'')?.split_once('\'')?;
            text.push_str(inner);
            word = rest;
        }
    }
    Some(text)
}

/// The marked block with its values. It ends at the last mark, because a value may contain a mark too.
fn block(script: &str) -> &str {
    let begin = script.find(BEGIN).expect("there is a block");
    let end = script.rfind(END).expect("the block ends");
    &script[begin..end + END.len()]
}

fn tail(script: &str) -> &str {
    &script[script.rfind(END).expect("the block ends")..]
}

/// Runs the script from standard input, in a shell that finds no commands. Bash also cannot write files.
fn run(shell: &[&str], script: &str) -> Output {
    let mut file = File::from(memfd_create(c"script", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    file.write_all(script.as_bytes()).and_then(|()| file.rewind()).expect("a file in memory");
    let path = if shell[0] == "sh" { "/bin/sh" } else { "/bin/bash" };
    Command::new(path)
        .args(&shell[1..])
        .env_clear()
        .env("PATH", "/nonexistent")
        .current_dir("/")
        .stdin(Stdio::from(file))
        .output()
        .expect("there is a shell")
}
