//! The native programs that the daemon serves to hosts: the download, and what the answers to a sync say about them.

use reqwest::header::{CONTENT_DISPOSITION, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use codex_authd::model::digest::Digest;

use crate::support::daemon::Daemon;

const PROGRAM: &[u8] = b"\x7fELF program";

fn put(daemon: &Daemon, target: &str, content: &[u8]) {
    let directory = daemon.state.path().join("programs");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join(format!("cdx-{target}")), content).unwrap();
}

struct Host<'a> {
    daemon: &'a Daemon,
    key: String,
}

impl Host<'_> {
    async fn get(&self, query: &str, if_none_match: Option<&str>) -> Response {
        let url = self.daemon.hosts_url(&format!("/wrapper/download{query}"));
        let mut asked = self.daemon.client().get(url).bearer_auth(&self.key);
        if let Some(tag) = if_none_match {
            asked = asked.header(IF_NONE_MATCH, tag);
        }
        asked.send().await.unwrap()
    }

    /// The answers to a retrieve: `versions`, and the lines.
    async fn sync(&self, target: Option<&str>) -> (Value, String) {
        let mut body = json!({"command": "retrieve", "digest": "0".repeat(64), "last_refresh": "2000-01-01T00:00:00Z"});
        if let Some(target) = target {
            body["wrapper_target"] = target.into();
        }
        let ask =
            |path: &str| self.daemon.client().post(self.daemon.hosts_url(path)).bearer_auth(&self.key).json(&body);
        let answer: Value = ask("/auth").send().await.unwrap().json().await.unwrap();
        let lines = ask("/auth/lines").send().await.unwrap().text().await.unwrap();
        (answer["data"]["versions"].clone(), lines)
    }
}

fn header(answer: &Response, name: impl reqwest::header::AsHeaderName) -> String {
    answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_is_served_to_hosts_of_its_machine_and_to_nobody_else() {
    let mut daemon = Daemon::prepare(&[]);
    put(&daemon, "x86_64-linux", PROGRAM);
    put(&daemon, "aarch64-darwin", b"");
    daemon.launch();
    assert!(daemon.log().contains("native_program_unusable"), "{}", daemon.log());
    let key = daemon.register(&daemon.admin(), "h.test").await.api_key;
    let host = Host { daemon: &daemon, key };
    let digest = Digest::of(PROGRAM).to_string();
    let etag = format!("\"{digest}\"");

    let answer = host.get("?target=x86_64-linux", None).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(
        (header(&answer, CONTENT_TYPE), header(&answer, CONTENT_DISPOSITION)),
        ("application/octet-stream".into(), String::new())
    );
    assert_eq!((header(&answer, "x-sha256"), header(&answer, ETAG)), (digest.clone(), etag.clone()));
    assert_eq!(answer.bytes().await.unwrap(), PROGRAM);
    for (tag, status) in [(&*etag, 304), (&format!("W/{etag}"), 304), ("*", 304), ("\"0\"", 200), ("", 200)] {
        let answer = host.get("?target=x86_64-linux", Some(tag)).await;
        assert_eq!((answer.status().as_u16(), header(&answer, ETAG)), (status, etag.clone()), "{tag}");
        assert_eq!(answer.bytes().await.unwrap().is_empty(), status == 304, "{tag}");
    }
    for target in ["aarch64-linux", "x86_64-darwin", "aarch64-darwin"] {
        let answer = host.get(&format!("?target={target}"), None).await;
        assert_eq!(answer.status(), 404, "{target}");
        assert_eq!(answer.json::<Value>().await.unwrap()["code"], "no_program", "{target}");
    }
    for query in
        ["?target=", "?target=x86_64", "?target=../config.toml", "?target=x86_64-linux&other=1", "?format=lines"]
    {
        assert_eq!(host.get(query, None).await.status(), 400, "{query}");
    }
    let stranger = Host { daemon: &daemon, key: "0".repeat(64) };
    for target in ["x86_64-linux", "aarch64-linux"] {
        assert_eq!(stranger.get(&format!("?target={target}"), None).await.status(), StatusCode::UNAUTHORIZED);
    }

    // Without a target it is the script, as before.
    let script = host.get("", None).await;
    assert_eq!(
        (script.status().as_u16(), header(&script, CONTENT_TYPE)),
        (200, "text/x-shellscript; charset=utf-8".into())
    );
    assert!(header(&script, CONTENT_DISPOSITION).starts_with("attachment; filename=\"cdx-"));
    let of_script = header(&script, "x-sha256");
    assert_eq!(Digest::of(&script.bytes().await.unwrap()).to_string(), of_script);

    // A sync announces the program to those that can run it.
    for (target, announced) in
        [(Some("x86_64-linux"), true), (Some("aarch64-linux"), false), (Some("no such"), false), (None, false)]
    {
        let (versions, lines) = host.sync(target).await;
        let wanted = if announced { &digest } else { &of_script };
        assert_eq!(versions["wrapper_sha256"], wanted.as_str(), "{target:?}");
        assert_eq!(versions.get("wrapper_target"), announced.then(|| json!("x86_64-linux")).as_ref(), "{target:?}");
        assert!(lines.contains(&format!("\nwrapper_sha256 {wanted}\n")), "{target:?}: {lines}");
        assert_eq!(lines.contains("\nwrapper_target x86_64-linux\n"), announced, "{target:?}: {lines}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_read_at_the_start_and_installers_carry_their_digests() {
    let mut daemon = Daemon::prepare(&[]);
    put(&daemon, "x86_64-linux", PROGRAM);
    daemon.launch();
    let carried = async |daemon: &Daemon, name: &str| {
        let token = daemon.register(&daemon.admin(), name).await.token;
        let url = daemon.hosts_url(&format!("/install/{token}"));
        daemon.client().get(url).send().await.unwrap().text().await.unwrap()
    };
    let digest = Digest::of(PROGRAM);
    assert!(carried(&daemon, "a.test").await.contains(&format!("\nCDX_PROGRAMS='x86_64-linux={digest}'\n")));
    put(&daemon, "x86_64-linux", b"newer");
    assert!(
        carried(&daemon, "b.test").await.contains(&format!("'x86_64-linux={digest}'")),
        "a file that is not served"
    );
    daemon.stop();
    daemon.launch();
    let newer = Digest::of(b"newer");
    assert!(carried(&daemon, "c.test").await.contains(&format!("'x86_64-linux={newer}'")));
}
