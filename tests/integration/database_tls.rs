//! The encrypted connection to a real server: the certificates that are trusted, and the error messages for others.

use std::path::{Path, PathBuf};

use codex_authd::records::mysql::{MySql, Options, Tls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::database::on_database;
use crate::support::daemon::install_provider;
use crate::support::mariadb::MariaDb;

const PASSWORD: &str = "canary-of-the-database";
const PORT: u16 = 3306;

/// A server with TLS, on an address that no other test uses.
struct Server {
    mariadb: MariaDb,
    address: String,
    directory: tempfile::TempDir,
}

impl Server {
    /// With a certificate that the test authority has issued for `name`; `None`: for its address.
    async fn start(name: Option<&str>) -> Self {
        install_provider();
        let directory = tempfile::tempdir().unwrap();
        let process = std::process::id();
        let address = format!("127.{}.{}.9", 200 + process / 250 % 50, process % 250);
        let ca = authority(&directory.path().join("ca.pem"));
        authority(&directory.path().join("other-ca.pem"));
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.unwrap_or(&address).to_owned()]).unwrap();
        let [certificate, private] = ["server.pem", "server.key"].map(|name| directory.path().join(name));
        std::fs::write(&certificate, leaf.signed_by(&key, &ca).unwrap().pem()).unwrap();
        std::fs::write(&private, key.serialize_pem()).unwrap();
        let mariadb = MariaDb::with(&[
            &format!("--bind-address={address}"),
            &format!("--port={PORT}"),
            &format!("--ssl-cert={}", certificate.display()),
            &format!("--ssl-key={}", private.display()),
        ]);
        mariadb.create("authd").await;
        mariadb.query(&format!("CREATE USER authd@'%' IDENTIFIED BY '{PASSWORD}' REQUIRE SSL")).await;
        mariadb.query("GRANT ALL ON authd.* TO authd@'%'").await;
        Self { mariadb, address, directory }
    }

    fn url(&self) -> String {
        format!("mysql://authd:{PASSWORD}@{}:{PORT}/authd", self.address)
    }

    fn ca(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The outcome of the first connection.
    async fn connect(&self, tls: Tls, ca: Option<PathBuf>) -> Result<(), String> {
        let timeout = std::time::Duration::from_secs(10);
        let records = MySql::new(&Options { url: self.url(), tls, ca, connections: 2, timeout }).unwrap();
        records.prepare().await.map_err(|error| error.to_string())
    }

    async fn refused(&self, tls: Tls, ca: Option<PathBuf>, what_to_do: &str) {
        let told = self.connect(tls, ca).await.unwrap_err();
        println!("{told}");
        assert!(told.contains(what_to_do), "{told}");
        assert!(!told.contains(PASSWORD), "{told}");
    }
}

fn authority(to: &Path) -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, format!("the authority {}", to.display()));
    let key = KeyPair::generate().unwrap();
    std::fs::write(to, params.self_signed(&key).unwrap().pem()).unwrap();
    Issuer::new(params, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_database_is_reached_encrypted_and_only_by_who_its_certificate_names() {
    let server = Server::start(None).await;
    // Another authority, and Mozilla's list.
    server.refused(Tls::Required, Some(server.ca("other-ca.pem")), "set database.ca").await;
    server.refused(Tls::Required, None, "set database.ca").await;
    server.refused(Tls::Off, None, "needs database.tls = true").await;
    server.connect(Tls::Required, Some(server.ca("ca.pem"))).await.unwrap();

    let ca = server.ca("ca.pem");
    let mut daemon = on_database(&server.url(), &[("DATABASE__CA", ca.to_str().unwrap())]);
    daemon.log_level = Some("trace");
    daemon.launch();
    let admin = daemon.admin();
    daemon.register(&admin, "a.test").await;
    // The server allows this user only TLS, and counts encrypted connections.
    let encrypted = server.mariadb.query("SHOW GLOBAL STATUS LIKE 'Ssl_finished_accepts'").await;
    let (_, encrypted): (String, u64) = mysql_async::from_row(encrypted.into_iter().next().unwrap());
    assert!(encrypted > 1, "{encrypted} encrypted connections");
    // The password is not in the files that every user can read.
    for file in ["cmdline", "comm"] {
        let shown = std::fs::read(format!("/proc/{}/{file}", daemon.pid())).unwrap();
        assert!(!String::from_utf8_lossy(&shown).contains(PASSWORD), "{file}");
    }
    assert!(!daemon.log().contains(PASSWORD), "the password is in the log");

    let without = on_database(&server.url(), &[]);
    let output = without.command(&["serve"]).env("RUST_LOG", "warn").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("set database.ca") && !said.contains(PASSWORD), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_name_is_refused() {
    let server = Server::start(Some("elsewhere.test")).await;
    server.refused(Tls::Required, Some(server.ca("ca.pem")), "a name in database.url that it was issued for").await;
}
