//! What stands at the end of every page of a command: examples, how it ends, files, environment, what else to read.

use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::config::DEFAULT_PATH;

/// Commands as they are typed, each with what it does. Every command has one.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "codex-authd",
        &[
            ("codex-authd doctor", "Say what is wrong, and the command that mends it."),
            ("codex-authd admin-cert alice --out alice.p12", "Make the certificate that opens the dashboard."),
            ("codex-authd auth upload ~/.codex/auth.json", "Make the login of this machine the canonical one."),
            ("codex-authd hosts add build-7.example.com", "Make a host; its installer command is printed."),
        ],
    ),
    ("serve", &[("codex-authd serve --config ./config.toml", "Run the daemon in the foreground until SIGTERM.")]),
    (
        "check-config",
        &[("codex-authd check-config && systemctl restart codex-authd", "Restart only with a good configuration.")],
    ),
    ("openapi", &[("codex-authd openapi > openapi.json", "Get the document to generate a client from.")]),
    ("completions", &[("source <(codex-authd completions bash)", "Complete in this shell, until it ends.")]),
    (
        "man",
        &[("codex-authd man /tmp/pages && man -l /tmp/pages/codex-authd-hosts.1", "Read a page without the package.")],
    ),
    (
        "admin-cert",
        &[
            ("codex-authd admin-cert alice --out alice.p12", "For a browser; the password is printed."),
            ("codex-authd admin-cert prometheus --pem /etc/prometheus/codex-authd", "For a program that reads PEM."),
        ],
    ),
    (
        "create-admin",
        &[("codex-authd create-admin ada@example.com", "Make the first user; the password is asked for.")],
    ),
    (
        "users",
        &[
            ("codex-authd users add grace@example.com --role member", "Somebody who installs hosts of their own."),
            ("codex-authd users disable grace@example.com", "End her sessions, everywhere, within a second."),
        ],
    ),
    (
        "link-identity",
        &[(
            "codex-authd link-identity --issuer https://id.example.com --subject 248289761001 --user grace@example.com",
            "Let the provider's 248289761001 sign in as grace@example.com.",
        )],
    ),
    ("identities", &[("codex-authd identities list", "Say who at the provider is which user here.")]),
    ("sessions", &[("codex-authd sessions list --user grace@example.com", "Say where somebody is signed in.")]),
    (
        "hosts",
        &[
            ("codex-authd hosts add build-7.example.com", "Make a host; run the printed command on it."),
            ("codex-authd hosts list --state unbound", "Say which hosts have never called."),
            ("codex-authd hosts networks build-7.example.com 192.0.2.0/24", "Serve it from this network only."),
            ("codex-authd hosts remove build-7.example.com", "Refuse its key from here on."),
        ],
    ),
    (
        "auth",
        &[
            ("codex-authd auth upload ~/.codex/auth.json --probe", "Upload a login, and have Codex prove it."),
            ("codex-authd auth rollback 3", "Bring version 3 back, as a new version."),
        ],
    ),
    ("certificates", &[("codex-authd certificates revoke 3fa9", "Let in no more whoever shows that certificate.")]),
    (
        "authorities",
        &[("codex-authd authorities prepare server", "Begin to roll over the authority that hosts trust.")],
    ),
    ("installers", &[("codex-authd installers list --outstanding", "Say which can still be redeemed.")]),
    ("audit", &[("codex-authd audit verify", "Say whether the log is whole, and its last hash: note it elsewhere.")]),
    ("api", &[("codex-authd api disable --reason 'moving house'", "Serve no host until `codex-authd api enable`.")]),
    (
        "runner",
        &[
            ("codex-authd runner run", "Say whether the canonical login works."),
            ("codex-authd runner doctor", "Say what that needs, and what is missing."),
        ],
    ),
    ("keys", &[("codex-authd keys rotate", "Seal all secrets anew, while the daemon runs.")]),
    ("backup", &[("codex-authd backup /var/backups/codex-authd/today", "Copy all records.")]),
    ("restore", &[("codex-authd restore /var/backups/codex-authd/today", "Bring them back.")]),
    ("migrate", &[("codex-authd migrate --to-file /root/database-url", "Move into the database that the file names.")]),
    ("metrics", &[("codex-authd metrics | grep hosts", "Say how many hosts there are, by state.")]),
    (
        "doctor",
        &[
            ("codex-authd doctor", "Say what is wrong, and the command that mends it."),
            ("codex-authd doctor --json", "The same for a program; exit status 1 if something does not work."),
        ],
    ),
];

const FILES: &[(&str, &str)] = &[
    (DEFAULT_PATH, "The configuration; see codex-authd-config(5). No package changes it."),
    ("/usr/share/codex-authd/config.toml", "Every key of the configuration, with its meaning and its default."),
    ("/var/lib/codex-authd", "The state directory: records, hot state, keys, certificates. Mode 0700."),
    ("/var/lib/codex-authd/pki/server-ca.crt", "The authority that hosts and browsers trust."),
    ("/run/codex-authd/control.sock", "Where the commands find the daemon; root and its own user are let in."),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("CODEX_AUTHD_CONFIG", "The configuration file, where --config is not given."),
    ("CODEX_AUTHD_SECTION__KEY", "A key of the configuration; it wins over the file."),
    ("CODEX_OIDC_KEY", "A key of the section [oidc]."),
    (
        "CREDENTIALS_DIRECTORY",
        "Set by systemd: the files master.key, database.password, oidc.client_secret and backup.passphrase in it are taken \
         before others.",
    ),
    ("RUST_LOG", "How much the daemon logs: error, warn, info (the default), debug or trace."),
    ("NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS", "Set by systemd: how the daemon tells that it works; its sockets."),
];

/// What the program's own page tells first.
pub fn description(page: &mut Vec<u8>) -> std::io::Result<()> {
    let mut roff = Roff::default();
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([
        bold("codex-authd"),
        roman(
            " keeps one canonical Codex auth.json and gives it to every host that may have it. An admin uploads a login \
             once; each host runs cdx instead of codex, which pulls the canonical login before Codex starts and brings a \
             newer one back.",
        ),
    ]);
    roff.control("PP", []);
    roff.text([
        bold("codex-authd serve"),
        roman(
            " is the daemon. The other commands speak to it through its control socket; all but metrics work while it \
             does not run as well, on its state directory, and then have to be run by root or its own user.",
        ),
    ]);
    roff.to_writer(page)
}

/// The sections after the options; `commands` are the pages that the program's own refers to.
pub fn end(page: &mut Vec<u8>, name: &str, commands: &[String]) -> std::io::Result<()> {
    let mut roff = Roff::default();
    roff.control("SH", ["EXAMPLES"]);
    let examples = EXAMPLES.iter().find(|(known, _)| *known == name).map(|(_, examples)| *examples).unwrap_or_default();
    for (typed, does) in examples {
        roff.control("TP", []);
        roff.text([bold(*typed)]);
        roff.text([roman(*does)]);
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in [
        ("0", "Done."),
        ("1", "Refused or failed; what happened, and what to do next, is on standard error."),
        ("2", "The command line cannot be understood."),
        ("141", "Nobody reads the answer any more; what was asked for was done."),
    ] {
        roff.control("TP", []);
        roff.text([bold(status)]);
        roff.text([roman(meaning)]);
    }
    roff.control("SH", ["FILES"]);
    for (path, meaning) in FILES {
        roff.control("TP", []);
        roff.text([italic(*path)]);
        roff.text([roman(*meaning)]);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    for (variable, meaning) in ENVIRONMENT {
        roff.control("TP", []);
        roff.text([bold(*variable)]);
        roff.text([roman(*meaning)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    let own = (name != "codex-authd").then(|| "codex-authd".to_owned());
    let mut pages: Vec<(&str, &str)> = own.iter().chain(commands).map(|page| (page.as_str(), "(1)")).collect();
    pages.push(("codex-authd-config", "(5)"));
    pages.extend([("systemctl", "(1)"), ("systemd.exec", "(5)")].into_iter().filter(|_| name == "serve"));
    let last = pages.len() - 1;
    for (at, (page, section)) in pages.into_iter().enumerate() {
        roff.text([bold(page), roman(section), roman(if at == last { "" } else { "," })]);
    }
    roff.to_writer(page)
}
