//! The package under test, and packages made from it: the same program with another version, or with older scripts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The variable with the directory of the .deb.
const VARIABLE: &str = "AUTHD_TEST_PACKAGES";

pub struct Package {
    pub file: PathBuf,
    pub version: String,
    /// The directory of a package that a test made.
    _made: Option<TempDir>,
}

impl Package {
    /// `Err`: the reason why there is none.
    pub fn under_test() -> Result<Self, String> {
        let directory = std::env::var_os(VARIABLE).ok_or(format!("{VARIABLE} names no directory with the package"))?;
        let directory = Path::new(&directory);
        let found = fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let is_it = |file: &PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("codex-authd_") && name.ends_with("_amd64.deb")
        };
        let mut files: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).filter(is_it).collect();
        assert!(files.len() < 2, "one package is tested at a time: {files:?}");
        let file = files.pop().ok_or(format!("no codex-authd_*_amd64.deb in {}", directory.display()))?;
        Ok(Self { version: field(&file, "Version"), file, _made: None })
    }

    /// Its control information.
    pub fn control(&self) -> String {
        dpkg_deb(&[Path::new("--field"), &self.file])
    }

    /// The same package as `version`, after `change` has changed its files and (under `DEBIAN/`) its scripts.
    pub fn remade(&self, version: &str, change: impl FnOnce(&Path)) -> Self {
        let made = tempfile::tempdir().unwrap();
        let tree = made.path().join("tree");
        dpkg_deb(&[Path::new("--raw-extract"), &self.file, &tree]);
        let control = tree.join("DEBIAN/control");
        let text = fs::read_to_string(&control).unwrap();
        let old = format!("\nVersion: {}\n", self.version);
        assert!(text.contains(&old), "{text}");
        fs::write(&control, text.replace(&old, &format!("\nVersion: {version}\n"))).unwrap();
        change(&tree);
        let file = made.path().join(format!("codex-authd_{version}_amd64.deb"));
        dpkg_deb(&[Path::new("-Znone"), Path::new("--root-owner-group"), Path::new("--build"), &tree, &file]);
        Self { file, version: version.into(), _made: Some(made) }
    }
}

fn field(package: &Path, name: &str) -> String {
    dpkg_deb(&[Path::new("--field"), package, Path::new(name)]).trim().to_owned()
}

fn dpkg_deb(arguments: &[&Path]) -> String {
    let output = Command::new("dpkg-deb").args(arguments).output().unwrap();
    assert!(output.status.success(), "dpkg-deb {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
