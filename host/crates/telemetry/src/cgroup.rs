//! Memory limit and usage of this process's control group, in both versions of control groups.
//!
//! The group's usage includes kernel memory such as socket buffers, which the process's own size does not show. The kernel kills by
//! this usage, so the memory limiter uses it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The mount point of control groups.
const ROOT: &str = "/sys/fs/cgroup";

/// A control group with a memory limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    dir: PathBuf,
    version: Version,
    limit: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Version {
    fn limit_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.limit_in_bytes",
            Self::V2 => "memory.max",
        }
    }

    fn usage_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.usage_in_bytes",
            Self::V2 => "memory.current",
        }
    }

    /// Parts of the usage that the kernel reclaims before it kills.
    fn reclaimable(self) -> [&'static str; 2] {
        match self {
            Self::V1 => ["total_inactive_file", "total_active_file"],
            Self::V2 => ["inactive_file", "active_file"],
        }
    }
}

impl Cgroup {
    /// The group with the lowest limit among this process's group and its ancestors; `None` without a limit.
    pub fn own() -> Option<Self> {
        Self::find(&fs::read_to_string("/proc/self/cgroup").ok()?, Path::new(ROOT))
    }

    /// `lines`: those of `/proc/self/cgroup`. `root`: the mount point.
    fn find(lines: &str, root: &Path) -> Option<Self> {
        let groups = lines.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let (mount, version) = match controllers {
                "" => (root.to_owned(), Version::V2),
                v1 if v1.split(',').any(|own| own == "memory") => (root.join("memory"), Version::V1),
                _ => return None,
            };
            Some((mount, path.trim_matches('/').to_owned(), version))
        });
        let limited = groups.flat_map(|(mount, path, version)| {
            // In a container the path may be that of the host's tree, while the group itself is mounted at the root.
            let inside = mount.join(&path);
            let above: Vec<PathBuf> =
                inside.ancestors().take_while(|dir| dir.starts_with(&mount)).map(Path::to_owned).collect();
            above.into_iter().filter_map(move |dir| {
                let limit = number(&dir.join(version.limit_file()))?;
                // Version 1 shows the largest number of whole pages for no limit.
                (limit < u64::MAX >> 2).then_some(Self { dir, version, limit })
            })
        });
        limited.min_by_key(|group| group.limit)
    }

    /// The limit of the group's processes together, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Their usage in bytes, without what the kernel reclaims.
    pub fn usage(&self) -> Option<u64> {
        let used = number(&self.dir.join(self.version.usage_file()))?;
        let stat = fs::read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        let names = self.version.reclaimable();
        let reclaimable = stat.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            names.contains(&name).then(|| value.trim().parse::<u64>().ok()).flatten()
        });
        Some(used.saturating_sub(reclaimable.sum()))
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        root
    }

    #[test]
    fn the_lowest_limit_above_the_process_counts_in_version_2() {
        let root = tree(&[
            ("a/memory.max", "536870912\n"),
            ("a/memory.current", "100000\n"),
            ("a/memory.stat", "anon 1\ninactive_file 20000\nactive_file 30000\n"),
            ("a/b/memory.max", "max\n"),
        ]);
        let found = Cgroup::find("0::/a/b\n", root.path()).unwrap();
        assert_eq!((found.limit(), found.usage()), (536_870_912, Some(50_000)));
        assert_eq!(Cgroup::find("0::/c\n", root.path()), None);
    }

    #[test]
    fn version_1_is_read_too() {
        let root = tree(&[
            ("memory/docker/x/memory.limit_in_bytes", "268435456\n"),
            ("memory/docker/x/memory.usage_in_bytes", "90000\n"),
            ("memory/docker/x/memory.stat", "total_inactive_file 10000\ntotal_active_file 5000\ninactive_file 7\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let lines = "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n";
        let found = Cgroup::find(lines, root.path()).unwrap();
        assert_eq!((found.limit(), found.usage()), (268_435_456, Some(75_000)));
        assert_eq!(Cgroup::find("4:memory:/\n", root.path()), None, "no limit at all");
    }

    /// In a container the path does not exist, and the mount point is the container's own group.
    #[test]
    fn a_path_of_another_tree_leads_to_the_mounted_group() {
        let root = tree(&[("memory/memory.limit_in_bytes", "1000000\n")]);
        assert_eq!(Cgroup::find("4:memory:/kubepods/pod1\n", root.path()).unwrap().limit(), 1_000_000);
    }
}
