//! A Galera cluster for one test: three MariaDB servers on loopback addresses that no other test uses.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::mariadb::{MariaDb, user};

const BOUND: Duration = Duration::from_secs(90);
const PROVIDER: &str = "/usr/lib/galera/libgalera_smm.so";

pub struct Galera {
    pub nodes: Vec<MariaDb>,
}

impl Galera {
    /// The first node makes the cluster; the others receive their state from it, with the programs of `tests/needs.sh`.
    pub async fn start() -> Self {
        assert!(std::path::Path::new(PROVIDER).exists(), "galera-4 is installed (tests/needs.sh)");
        // The state transfer drops root's rights; the servers run as the owner of their files.
        let user = if nix::unistd::geteuid().is_root() { "nobody".into() } else { user() };
        let network = std::process::id();
        let address = |node: usize| format!("127.{}.{}.{}", 100 + network / 250 % 100, network % 250, node + 1);
        let all: Vec<_> = (0..3).map(address).collect();
        let mut cluster = Self { nodes: (0..3).map(|node| node_at(&address(node), &all, &user)).collect() };
        for node in &cluster.nodes {
            std::fs::create_dir(node.data()).unwrap();
            let owned = Command::new("chown").arg("-R").arg(&user).arg(node.directory()).status().unwrap();
            assert!(owned.success());
        }
        cluster.nodes[0].install();
        cluster.nodes[0].spawn(&["--wsrep-new-cluster"]);
        cluster.until_synced(0).await;
        for node in [1, 2] {
            cluster.nodes[node].spawn(&[]);
        }
        for node in [1, 2] {
            cluster.until_synced(node).await;
        }
        cluster
    }

    /// Waits until the node serves as one of the majority.
    #[allow(clippy::disallowed_methods)] // Between two looks, within a bound.
    pub async fn until_synced(&self, node: usize) {
        let begun = Instant::now();
        while self.status(node, "wsrep_local_state_comment").await.as_deref() != Some("Synced")
            || self.status(node, "wsrep_cluster_status").await.as_deref() != Some("Primary")
        {
            assert!(begun.elapsed() < BOUND, "node {node} does not join:\n{}", self.nodes[node].log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn status(&self, node: usize, name: &str) -> Option<String> {
        let rows = self.nodes[node].try_query(&format!("SHOW STATUS LIKE '{name}'")).await.ok()?;
        rows.into_iter().next().map(|row| mysql_async::from_row::<(String, String)>(row).1)
    }

    /// Cuts a node off from the others, or reconnects it.
    pub async fn isolate(&self, node: usize, isolated: bool) {
        let isolated = u8::from(isolated);
        self.nodes[node].query(&format!("SET GLOBAL wsrep_provider_options = 'gmcast.isolate={isolated}'")).await;
    }
}

fn node_at(address: &str, all: &[String], user: &str) -> MariaDb {
    // The others drop a killed node after seconds; a real network needs longer timeouts.
    let provider = format!(
        "gcache.size=32M;gmcast.listen_addr=tcp://{address}:4567;ist.recv_addr={address}:4568;ist.recv_bind={address}:4568;\
         evs.suspect_timeout=PT3S;evs.inactive_timeout=PT6S;evs.install_timeout=PT6S;evs.keepalive_period=PT0.7S"
    );
    let settings = [
        "--binlog-format=ROW".to_owned(),
        "--innodb-autoinc-lock-mode=2".into(),
        "--wsrep-on=ON".into(),
        format!("--wsrep-provider={PROVIDER}"),
        format!("--wsrep-provider-options={provider}"),
        "--wsrep-cluster-name=test".into(),
        format!("--wsrep-cluster-address=gcomm://{}", all.join(",")),
        format!("--wsrep-node-name={address}"),
        format!("--wsrep-node-address={address}"),
        "--wsrep-sst-method=rsync".into(),
        format!("--wsrep-sst-receive-address={address}:4444"),
    ];
    let mut node = MariaDb::prepare(&settings.each_ref().map(String::as_str), user);
    // A directory that the server's user may read.
    let path = node.directory().join("bin");
    std::fs::create_dir(&path).unwrap();
    for script in ["wsrep_sst_rsync", "wsrep_sst_common"] {
        std::fs::copy(scripts().join(script), path.join(script)).unwrap();
    }
    node.path = Some(path);
    node
}

/// The scripts of the state transfer: an installed server's, otherwise those that `needs.sh` unpacked.
fn scripts() -> PathBuf {
    let cache = std::env::var_os("AUTHD_TEST_CACHE").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/codex-authd-tests"));
    let unpacked = cache.join("mariadb-server/usr/bin");
    let found = [PathBuf::from("/usr/bin"), unpacked].into_iter().find(|path| path.join("wsrep_sst_rsync").exists());
    found.expect("wsrep_sst_rsync is there (tests/needs.sh)")
}
