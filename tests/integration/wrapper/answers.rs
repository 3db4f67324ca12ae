//! Answers that are damaged, hostile or cut off change nothing.

use std::io::Write as _;
use std::path::PathBuf;

use codex_authd::model::digest::Digest;
use serde_json::Value;

use super::{in_step, litter, login};
use crate::support::answers::{Answer, sync};
use crate::support::eventually;
use crate::support::host::{Host, Program};

crate::for_both_programs!(
    answers_that_are_not_whole_change_nothing,
    a_bad_answer_to_a_store_leaves_the_renewed_login,
    a_connection_cut_in_the_middle_changes_nothing,
);

fn answers_that_are_not_whole_change_nothing(program: Program) {
    let (daemon, host, canonical) = in_step(program);
    let other = login(50).to_string();
    let good = sync("outdated", Some(&other)).bytes(program.format());
    let text = String::from_utf8(good.clone()).unwrap();
    let digest = Digest::of(other.as_bytes()).to_string();
    let bytes = |answer: Answer| answer.bytes(program.format());
    let mut spoiled: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"<html>Log in to the network</html>".to_vec(),
        good[..good.len() - 1].to_vec(),
        [good.as_slice(), b"x"].concat(),
        text.replace("access-50", "access-51").into_bytes(),
        text.replace(&digest, &"0".repeat(64)).into_bytes(),
        text.replace(&digest, "").into_bytes(),
        text.replace("outdated", "$(touch canary)").into_bytes(),
        text.replace(&other, "").into_bytes(),
        bytes(sync("outdated", None)),
        bytes(sync("outdated", Some(""))),
        bytes(sync("outdated", Some("not json"))),
        vec![b'x'; 9 << 20],
    ];
    spoiled.extend(match program {
        Program::Bash => spoiled_lines(&text),
        Program::Native => spoiled_json(&text),
    });
    for shell in program.shells() {
        let mut host_shell = Host::new(program, &daemon.server.url());
        host_shell.shell = shell.clone();
        daemon.answer_well();
        assert_eq!(host_shell.run(&["--sync"]).code, Some(0));
        for host in [&host, &host_shell] {
            for answer in &spoiled {
                daemon.answer_always(200, answer.clone());
                let shown = String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
                let ran = host.run(&["x"]);
                assert_eq!(ran.code, Some(0), "the login of a moment ago is good enough: {shown:?} {ran:?}");
                assert_eq!(host.auth().as_ref(), Some(&canonical), "{shown:?}");
                assert!(ran.err.contains("continuing with the login"), "{shown:?} {ran:?}");
                assert!(!host.file("canary").exists());
                assert_eq!(litter(host), Vec::<PathBuf>::new());
            }
        }
    }
}

fn spoiled_lines(good: &str) -> Vec<Vec<u8>> {
    vec![
        [good.as_bytes(), b" "].concat(),
        good.replace("digest ", "Digest ").into_bytes(),
        good.replace("auth ", "auth -").into_bytes(),
        good.replace("auth ", "auth 1").into_bytes(),
        good.replace("auth ", "auth a[$(touch canary)]+").into_bytes(),
        good.replace("status outdated\n", "").into_bytes(),
        b"x y\n".repeat(100),
        [b"status valid\nmessage ".to_vec(), vec![b'x'; 100_000], b"\n".to_vec()].concat(),
    ]
}

fn spoiled_json(good: &str) -> Vec<Vec<u8>> {
    let good: Value = serde_json::from_str(good).unwrap();
    let with = |change: fn(&mut Value)| {
        let mut answer = good.clone();
        change(&mut answer);
        answer.to_string().into_bytes()
    };
    let mut not_utf8 = good.to_string().into_bytes();
    let position = not_utf8.windows(9).position(|part| part == b"access-50").unwrap();
    not_utf8[position] = 0xff;
    vec![
        // Only the exact text counts, never the parsed document.
        with(|answer| drop(answer["data"].as_object_mut().unwrap().remove("auth_text"))),
        with(|answer| answer["data"]["auth_text"] = answer["data"]["auth"].clone()),
        with(|answer| answer["data"]["auth_text"] = Value::Null),
        with(|answer| answer["data"]["auth_text"] = 7.into()),
        with(|answer| drop(answer["data"].as_object_mut().unwrap().remove("canonical_digest"))),
        with(|answer| answer["data"]["canonical_digest"] = 7.into()),
        with(|answer| drop(answer["data"].as_object_mut().unwrap().remove("status"))),
        with(|answer| answer["data"]["status"] = true.into()),
        with(|answer| answer["data"] = Value::Null),
        with(|answer| *answer = answer["data"].clone()),
        with(|answer| *answer = answer["data"]["auth"].clone()),
        with(|answer| *answer = Value::Array(vec![answer.clone()])),
        not_utf8,
        good.to_string().replace("access-50", "access-\\ud800").into_bytes(),
        b"[".repeat(100_000),
        br#"{"a":"#.repeat(100_000),
        b"null".to_vec(),
    ]
}

fn a_bad_answer_to_a_store_leaves_the_renewed_login(program: Program) {
    let (daemon, host, _) = in_step(program);
    let renewed = login(40).to_string();
    let damaged = sync("updated", Some(&login(50).to_string()));
    daemon.answer_always(200, &damaged.bytes(program.format())[..20]);
    // The first answer is damaged as well; codex runs on the recent login, and renews it.
    let ran = host.run_codex(&format!("printf '%s' '{renewed}' >\"$HOME/.codex/auth.json\"; exit 4"), &[]);
    assert_eq!(ran.code, Some(4), "the exit code is codex's: {ran:?}");
    assert_eq!(host.auth(), Some(renewed.clone()));
    daemon.answer_well();
    assert_eq!(host.run(&["--sync"]).code, Some(0));
    assert_eq!(daemon.canonical(), Some(renewed), "the next cdx stores it");
}

fn a_connection_cut_in_the_middle_changes_nothing(program: Program) {
    let (daemon, host, canonical) = in_step(program);
    let port = daemon.server.port;
    drop(daemon);
    let listener = eventually("the port is free", || std::net::TcpListener::bind(("127.0.0.1", port)).ok());
    let answer = sync("outdated", Some(&login(50).to_string())).bytes(program.format());
    let cut = std::thread::spawn(move || {
        use std::io::Read as _;
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", answer.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&answer[..answer.len() - 20]).unwrap();
    });
    let ran = host.run(&["x"]);
    cut.join().unwrap();
    assert_eq!((ran.code, host.auth()), (Some(0), Some(canonical)), "{ran:?}");
    assert!(ran.err.contains("the connection to the daemon broke"), "{ran:?}");
}
