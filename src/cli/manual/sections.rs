//! The last sections of each command's page: examples, exit status, files, environment, and references.

use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::config::DEFAULT_PATH;

/// Example commands, each with its effect. Every command has at least one.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "codex-authd",
        &[
            ("codex-authd doctor", "Show problems, and the command that solves each."),
            ("codex-authd admin-cert alice --out alice.p12", "Make the certificate that opens the dashboard."),
            ("codex-authd auth upload ~/.codex/auth.json", "Make the login of this machine the canonical one."),
            ("codex-authd hosts add build-7.example.com", "Register a host, and print its installer command."),
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
            ("codex-authd users add grace@example.com --role member", "A user who can install own hosts."),
            ("codex-authd users disable grace@example.com", "End all sessions of this user within a second."),
        ],
    ),
    (
        "link-identity",
        &[(
            "codex-authd link-identity --issuer https://id.example.com --subject 248289761001 --user grace@example.com",
            "Let the provider's user 248289761001 sign in as grace@example.com.",
        )],
    ),
    ("identities", &[("codex-authd identities list", "List the links between users of the provider and users here.")]),
    ("sessions", &[("codex-authd sessions list --user grace@example.com", "List the sessions of a user.")]),
    (
        "hosts",
        &[
            ("codex-authd hosts add build-7.example.com", "Register a host; run the printed command on it."),
            ("codex-authd hosts list --state unbound", "List the hosts that have never called."),
            ("codex-authd hosts networks build-7.example.com 192.0.2.0/24", "Serve the host from this network only."),
            ("codex-authd hosts remove build-7.example.com", "Refuse the host's key from now on."),
        ],
    ),
    (
        "auth",
        &[
            ("codex-authd auth upload ~/.codex/auth.json --probe", "Upload a login, and prove it by running Codex."),
            ("codex-authd auth rollback 3", "Restore version 3, as a new version."),
        ],
    ),
    ("certificates", &[("codex-authd certificates revoke 3fa9", "Refuse this certificate from now on.")]),
    ("authorities", &[("codex-authd authorities prepare server", "Start to replace the authority that hosts trust.")]),
    ("installers", &[("codex-authd installers list --outstanding", "List the installers that can still be redeemed.")]),
    ("audit", &[("codex-authd audit verify", "Verify the log, and print its last hash: note it elsewhere.")]),
    ("api", &[("codex-authd api disable --reason 'moving house'", "Serve no host until `codex-authd api enable`.")]),
    (
        "runner",
        &[
            ("codex-authd runner run", "Check whether the canonical login works."),
            ("codex-authd runner doctor", "Show what probes need, and what is missing."),
        ],
    ),
    ("keys", &[("codex-authd keys rotate", "Seal all secrets with a new key, while the daemon runs.")]),
    ("backup", &[("codex-authd backup /var/backups/codex-authd/today", "Copy all records.")]),
    ("restore", &[("codex-authd restore /var/backups/codex-authd/today", "Restore all records from that backup.")]),
    (
        "migrate",
        &[(
            "codex-authd migrate --to-file /root/database-url",
            "Move all records into the database whose URL is in the file.",
        )],
    ),
    ("metrics", &[("codex-authd metrics | grep hosts", "Show the number of hosts by state.")]),
    (
        "doctor",
        &[
            ("codex-authd doctor", "Show problems, and the command that solves each."),
            ("codex-authd doctor --json", "The same for a program; exit status 1 if something does not work."),
        ],
    ),
];

const FILES: &[(&str, &str)] = &[
    (DEFAULT_PATH, "The configuration; see codex-authd-config(5). Packages never change it."),
    ("/usr/share/codex-authd/config.toml", "Every key of the configuration, with its meaning and its default."),
    ("/var/lib/codex-authd", "The state directory: records, hot state, keys, certificates. Mode 0700."),
    ("/var/lib/codex-authd/pki/server-ca.crt", "The authority that hosts and browsers trust."),
    ("/run/codex-authd/control.sock", "The daemon's control socket, for root and for the daemon's own user."),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("CODEX_AUTHD_CONFIG", "The configuration file, if --config is not given."),
    ("CODEX_AUTHD_SECTION__KEY", "A key of the configuration; it overrides the file."),
    ("CODEX_OIDC_KEY", "A key of the section [oidc]."),
    (
        "CREDENTIALS_DIRECTORY",
        "Set by systemd: the files master.key, database.password, oidc.client_secret and backup.passphrase in it have \
         priority.",
    ),
    ("RUST_LOG", "The log level of the daemon: error, warn, info (the default), debug or trace."),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS",
        "Set by systemd: status and watchdog notifications, and the listening sockets.",
    ),
];

/// Writes the description on the program's own page.
pub fn description(page: &mut Vec<u8>) -> std::io::Result<()> {
    let mut roff = Roff::default();
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([
        bold("codex-authd"),
        roman(
            " keeps one canonical Codex auth.json and gives it to every host that may have it. An admin uploads a login \
             once. Each host runs cdx instead of codex. cdx pulls the canonical login before Codex starts, and sends a \
             newer one back afterwards.",
        ),
    ]);
    roff.control("PP", []);
    roff.text([
        bold("codex-authd serve"),
        roman(
            " is the daemon. The other commands use its control socket. If no daemon runs, all commands but metrics work \
             directly on the state directory; then root or the daemon's own user must run them.",
        ),
    ]);
    roff.to_writer(page)
}

/// Writes the sections after the options. `commands` are the pages that the program's own page refers to.
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
        ("1", "Refused or failed; the reason, and what to do next, are on standard error."),
        ("2", "The command line is invalid."),
        ("141", "The reader of the output has gone; the command was executed."),
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
