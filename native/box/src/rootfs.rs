//! The file tree of a box: overlays on a sized tmpfs, host folders, /dev, /proc, /sys.
//!
//! Runs in the box's own mount namespace, before the process gives up its rights. Every path inside
//! the new root is resolved with `RESOLVE_IN_ROOT`, so links in an image cannot point a mount at the host.

use crate::layers;
use crate::msgpack::Value;
use crate::sys::*;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{chown, PermissionsExt};

pub struct Builder<'a> {
    spec: &'a Value,
    userns: Option<&'a OwnedFd>,
    /// The namespace that holds the mounted image layers, if the box stands on some.
    keeper: Option<&'a OwnedFd>,
    /// First id of the box's range on the host; ordinary users map only themselves and chown nothing.
    id_base: Option<u32>,
    root: String,
    /// Lowers or folders whose file system cannot be id-mapped, mounted with the host's ids instead.
    pub unmapped: Vec<String>,
}

/// Builds the tree and goes to its root; returns the host folders that could not be id-mapped.
///
/// The host's tree stays reachable until `pivot_here`.
pub fn build(spec: &Value, userns: Option<&OwnedFd>, keeper: Option<&OwnedFd>) -> Res<Vec<String>> {
    mount_fs("none", "/", "none", MS_REC | MS_PRIVATE, "")?;
    let stage = spec.get("stage").str();
    let size = spec.get("disk_bytes").int().unwrap_or(1 << 30);
    let inodes = (size / 4096).clamp(4096, 1 << 22);
    mount_fs("tmpfs", stage, "tmpfs", MS_NOSUID | MS_NODEV, &format!("mode=755,size={size},nr_inodes={inodes}"))?;
    std::env::set_current_dir(stage).named("chdir to stage")?;
    let id_base = userns.and(spec.get("id_base").int()).map(|n| n as u32);
    let mut builder =
        Builder { spec, userns, keeper, id_base, root: format!("{stage}/root"), unmapped: Vec::new() };
    builder.directory("root", 0o755)?;
    for (index, layer) in spec.get("layers").list().iter().enumerate() {
        builder.overlay(index, layer)?;
    }
    builder.standard_places()?;
    for bind in spec.get("binds").list() {
        builder.host_folder(bind)?;
    }
    keep_uppers(stage)?;
    std::env::set_current_dir(&builder.root).named("chdir to the new root")?;
    Ok(builder.unmapped)
}

/// Process 1 keeps the folder of the upper layers under this number: through its `/proc/PID/fd` the edge
/// reads what the box has written, at any time, and nobody in the box can.
const UPPERS_FD: i32 = 100;

fn keep_uppers(stage: &str) -> Res<()> {
    extern "C" {
        fn dup3(old: i32, new: i32, flags: i32) -> i32;
    }
    const O_CLOEXEC: i32 = 0o2000000;
    let folder = open_path(stage)?;
    check(unsafe { dup3(folder.as_raw_fd(), UPPERS_FD, O_CLOEXEC) }.into(), "keep the upper layers").map(drop)
}

impl Builder<'_> {
    fn give(&self, path: &str) -> Res<()> {
        match self.id_base {
            Some(id) => chown(path, Some(id), Some(id)).named(format!("chown {path}")),
            None => Ok(()),
        }
    }

    fn directory(&self, path: &str, mode: u32) -> Res<()> {
        fs::create_dir(path).named(format!("mkdir {path}"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).named(format!("chmod {path}"))?;
        self.give(path)
    }

    /// A detached copy of a host mount whose ids are the box's, as far as its file system can do that.
    fn host_tree(&mut self, path: &str, attrs: u64) -> Res<OwnedFd> {
        let tree = clone_tree(path, self.userns.is_none())?;
        self.with_own_ids(tree, path, attrs)
    }

    fn with_own_ids(&mut self, tree: OwnedFd, path: &str, attrs: u64) -> Res<OwnedFd> {
        let may_map = self.spec.get("idmap").bool();
        if may_map && self.userns.is_some() && set_mount_attr(&tree, attrs, self.userns).is_ok() {
            return Ok(tree);
        }
        if self.userns.is_some() {
            self.unmapped.push(path.to_string());
        }
        set_mount_attr(&tree, attrs, None)?;
        Ok(tree)
    }

    /// A lower layer: a host folder, or an EROFS image that the keeper has mounted.
    fn lower(&mut self, lower: &Value) -> Res<OwnedFd> {
        let attrs = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV;
        let (Value::Map(_), Some(keeper)) = (lower, self.keeper) else {
            return self.host_tree(lower.str(), attrs);
        };
        let image = lower.get("erofs").str();
        let tree = layers::tree(keeper, image)?;
        self.with_own_ids(tree, image, attrs)
    }

    fn overlay(&mut self, index: usize, layer: &Value) -> Res<()> {
        let at = layer.get("at").str();
        let (upper, work) = (format!("up{index}"), format!("wk{index}"));
        self.directory(&upper, 0o755)?;
        self.directory(&work, 0o755)?;
        let mut lowers = Vec::new();
        for (j, path) in layer.get("lower").list().iter().enumerate() {
            let place = format!("l{index}.{j}");
            fs::create_dir(&place).named(format!("mkdir {place}"))?;
            let tree = self.lower(path)?;
            attach_mount(&tree, &open_path(&place)?, &place)?;
            lowers.push(place);
        }
        let lowers = lowers.join(":");
        let mut options = format!("lowerdir={lowers},upperdir={upper},workdir={work}");
        if self.id_base.is_none() {
            options.push_str(",userxattr");
        }
        if at != "/" {
            self.place(at, true)?;
        }
        let (_place, target) = self.reached(at)?;
        let what = |fail: Fail| Fail { what: format!("overlay for {at} ({options})"), ..fail };
        mount_fs("overlay", &target, "overlay", MS_NODEV, &options).map_err(what)
    }

    fn root_fd(&self) -> Res<OwnedFd> {
        open_path(&self.root)
    }

    /// Opens a place of the box; the path names the open descriptor and cannot be redirected.
    fn reached(&self, at: &str) -> Res<(OwnedFd, String)> {
        let fd = open_in_root(&self.root_fd()?, at, O_PATH)?;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Ok((fd, path))
    }

    /// Makes a directory (or an empty file) at a path of the box, with its parents.
    fn place(&self, at: &str, is_directory: bool) -> Res<()> {
        let names: Vec<&str> = at.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        for end in 1..=names.len() {
            let path = format!("/{}", names[..end].join("/"));
            if open_in_root(&self.root_fd()?, &path, O_PATH).is_err() {
                let parent = format!("/{}", names[..end - 1].join("/"));
                self.new_entry(&parent, names[end - 1], is_directory || end < names.len())
                    .map_err(|fail| Fail { what: format!("make {at} in the box"), ..fail })?;
            }
        }
        Ok(())
    }

    fn new_entry(&self, parent: &str, name: &str, is_directory: bool) -> Res<()> {
        let (_parent, parent_path) = self.reached(parent)?;
        let full = format!("{parent_path}/{name}");
        if fs::symlink_metadata(&full).is_ok_and(|meta| meta.is_symlink()) {
            // It leads nowhere within the image. Only the box's own layer loses it.
            fs::remove_file(&full).named("replace a dangling link")?;
        }
        if is_directory {
            return self.directory(&full, 0o755);
        }
        fs::write(&full, "").named("create")?;
        self.give(&full)
    }

    fn mount_at(&self, kind: &str, at: &str, flags: u64, data: &str) -> Res<()> {
        let (_place, path) = self.reached(at)?;
        mount_fs(kind, &path, kind, flags, data).map_err(|f| Fail { what: format!("mount {kind} on {at} of the box"), ..f })
    }

    fn host_folder(&mut self, bind: &Value) -> Res<()> {
        let (source, at) = (bind.get("src").str(), bind.get("at").str());
        let is_directory = fs::metadata(source).named(format!("mount source {source}"))?.is_dir();
        self.place(at, is_directory)?;
        let read_only = if bind.get("ro").bool() { MOUNT_ATTR_RDONLY } else { 0 };
        let tree = self.host_tree(source, read_only | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)?;
        attach_mount(&tree, &self.reached(at)?.0, at)
    }

    fn standard_places(&mut self) -> Res<()> {
        for at in ["/proc", "/sys", "/dev", "/tmp", "/run"] {
            self.place(at, true)?;
        }
        let (_tmp, tmp) = self.reached("/tmp")?;
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).named("chmod /tmp")?;
        self.devices()?;
        self.proc_and_sys()
    }

    fn devices(&mut self) -> Res<()> {
        self.mount_at("tmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k,nr_inodes=64")?;
        let (_dev, dev) = self.reached("/dev")?;
        for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
            self.device(&dev, name, 1, minor)?;
        }
        self.device(&dev, "tty", 5, 0)?;
        for (name, target) in
            [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")]
        {
            std::os::unix::fs::symlink(target, format!("{dev}/{name}")).named(format!("link /dev/{name}"))?;
        }
        for name in ["pts", "shm"] {
            self.directory(&format!("{dev}/{name}"), 0o755)?;
        }
        let group = self.id_base.map_or(String::new(), |id| format!(",gid={}", id + 5));
        let options = format!("newinstance,ptmxmode=0666,mode=0620{group}");
        self.mount_at("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, &options)?;
        let shm = self.spec.get("shm_bytes").int().unwrap_or(64 << 20);
        self.mount_at("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, &format!("mode=1777,size={shm}"))
    }

    fn device(&self, dev: &str, name: &str, major: u64, minor: u64) -> Res<()> {
        let path = format!("{dev}/{name}");
        if self.id_base.is_some() {
            make_device(&path, major, minor)?;
            return fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).named(format!("chmod {name}"));
        }
        fs::write(&path, "").named(format!("create {name}"))?;
        let node = clone_tree(&format!("/dev/{name}"), true)?;
        attach_mount(&node, &open_path(&path)?, name)
    }

    fn proc_and_sys(&mut self) -> Res<()> {
        let quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC;
        self.mount_at("proc", "/proc", quiet, "")?;
        // Services bind low ports in their own network namespace without a capability over it.
        let (_proc, proc) = self.reached("/proc")?;
        if self.spec.get("own_network").bool() {
            let _ = fs::write(format!("{proc}/sys/net/ipv4/ip_unprivileged_port_start"), "0");
        }
        if self.mount_at("sysfs", "/sys", quiet | MS_RDONLY, "").is_ok() {
            self.mask("/sys/firmware")?;
        }
        for at in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"] {
            self.freeze(at)?;
        }
        for at in ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/kpagecount", "/proc/kpagecgroup", "/proc/kpageflags", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/proc/vmallocinfo", "/proc/kallsyms"] {
            self.mask(at)?;
        }
        Ok(())
    }

    /// Makes a place read-only, if it exists.
    fn freeze(&self, at: &str) -> Res<()> {
        let Ok((_place, path)) = self.reached(at) else { return Ok(()) };
        let tree = clone_tree(&path, true)?;
        set_mount_attr(&tree, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, None)?;
        attach_mount(&tree, &self.reached(at)?.0, at)
    }

    /// Covers a place, if it exists: a directory by an empty one, a file by /dev/null.
    fn mask(&self, at: &str) -> Res<()> {
        let Ok((place, path)) = self.reached(at) else { return Ok(()) };
        if fs::metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            return mount_fs("tmpfs", &path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=555");
        }
        let null = clone_tree("/dev/null", true)?;
        attach_mount(&null, &place, at)
    }
}
