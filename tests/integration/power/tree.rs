//! The content of a directory in memory.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use super::log::Inode;

#[derive(Default)]
pub struct Tree {
    /// Mode and content by path; the root is "".
    pub nodes: BTreeMap<String, (u32, Content)>,
}

#[derive(Clone)]
pub enum Content {
    Directory,
    /// Hard links share the `Arc`.
    File(Arc<Vec<u8>>),
}

impl Content {
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Directory => None,
            Self::File(bytes) => Some(bytes),
        }
    }
}

impl Tree {
    /// Reads `directory`, with the inodes by path.
    pub fn read(directory: &Path) -> (Self, BTreeMap<String, Inode>) {
        let (mut tree, mut inodes) = (Self::default(), BTreeMap::new());
        let mut left = vec![String::new()];
        while let Some(path) = left.pop() {
            let at = directory.join(&path);
            let about = std::fs::symlink_metadata(&at).unwrap();
            inodes.insert(path.clone(), about.ino());
            let content = if about.is_dir() {
                for entry in std::fs::read_dir(&at).unwrap() {
                    let name = entry.unwrap().file_name().into_string().unwrap();
                    left.push(if path.is_empty() { name } else { format!("{path}/{name}") });
                }
                Content::Directory
            } else {
                Content::File(Arc::new(std::fs::read(&at).unwrap()))
            };
            tree.nodes.insert(path, (about.mode() & 0o7777, content));
        }
        (tree, inodes)
    }

    /// Writes the tree into `directory`, which is empty or missing.
    pub fn write(&self, directory: &Path) {
        let mut written: Vec<(&Arc<Vec<u8>>, &str)> = Vec::new();
        for (path, (mode, content)) in &self.nodes {
            let at = directory.join(path);
            match content {
                Content::Directory => std::fs::create_dir_all(&at).unwrap(),
                Content::File(bytes) => {
                    if let Some((_, first)) = written.iter().find(|(known, _)| Arc::ptr_eq(known, bytes)) {
                        std::fs::hard_link(directory.join(first), &at).unwrap();
                        continue;
                    }
                    written.push((bytes, path));
                    std::fs::write(&at, &***bytes).unwrap();
                }
            }
            std::fs::set_permissions(&at, std::fs::Permissions::from_mode(*mode)).unwrap();
        }
    }

    /// Describes the first difference to `other`.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let names = |tree: &Self| tree.nodes.keys().cloned().collect::<Vec<_>>();
        if names(self) != names(other) {
            return Some(format!("{:?} and {:?}", names(self), names(other)));
        }
        self.nodes.iter().find_map(|(path, (mode, content))| {
            let (other_mode, other) = &other.nodes[path];
            let (here, there) = (content.bytes(), other.bytes());
            let lengths = || format!("{:?} and {:?} bytes", here.map(<[u8]>::len), there.map(<[u8]>::len));
            (here != there || mode != other_mode)
                .then(|| format!("{path}: {}, modes {mode:o} and {other_mode:o}", lengths()))
        })
    }
}
