//! The file tree of a box: overlays on a sized tmpfs, host folders, /dev, /proc, /sys.
//!
//! Runs in the box's own mount namespace, before the process gives up its rights. Every path inside
//! the new root is resolved with `RESOLVE_IN_ROOT`, so links in an image cannot point a mount at the host.

use crate::layers;
use crate::msgpack::Value;
use crate::sys::*;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{chown, DirBuilderExt, OpenOptionsExt, PermissionsExt};

pub struct Builder<'a> {
    spec: &'a Value,
    userns: Option<&'a OwnedFd>,
    /// The namespace that holds the mounted image layers, if the box stands on some.
    keeper: Option<&'a OwnedFd>,
    /// First id of the box's range on the host; ordinary users map only themselves and chown nothing.
    id_base: Option<u32>,
    /// The new root, as it is at this step.
    root: OwnedFd,
    /// Lowers or folders whose file system cannot be id-mapped, mounted with the host's ids instead.
    pub unmapped: Vec<String>,
}

/// Builds the tree and goes to its root; returns the host folders that could not be id-mapped.
///
/// The host's tree stays reachable until `pivot_here`. The mask of file modes is off meanwhile: whatever is
/// made gets the mode that it was made with.
pub fn build(spec: &Value, userns: Option<&OwnedFd>, keeper: Option<&OwnedFd>) -> Res<Vec<String>> {
    let mask = unsafe { umask(0) };
    let built = build_unmasked(spec, userns, keeper);
    unsafe { umask(mask) };
    built
}

fn build_unmasked(spec: &Value, userns: Option<&OwnedFd>, keeper: Option<&OwnedFd>) -> Res<Vec<String>> {
    mount_fs("none", "/", "none", MS_REC | MS_PRIVATE, "")?;
    let stage = spec.get("stage").str();
    let size = spec.get("disk_bytes").int().unwrap_or(1 << 30);
    let inodes = (size / 4096).clamp(4096, 1 << 22);
    mount_fs("tmpfs", stage, "tmpfs", MS_NOSUID | MS_NODEV, &format!("mode=755,size={size},nr_inodes={inodes}"))?;
    std::env::set_current_dir(stage).named("chdir to stage")?;
    let id_base = userns.and(spec.get("id_base").int()).map(|n| n as u32);
    fs::DirBuilder::new().mode(0o755).create("root").named("mkdir root")?;
    let root = open_path("root")?;
    let mut builder = Builder { spec, userns, keeper, id_base, root, unmapped: Vec::new() };
    builder.give("root")?;
    for (index, layer) in spec.get("layers").list().iter().enumerate() {
        builder.overlay(index, layer)?;
    }
    builder.standard_places()?;
    for bind in spec.get("binds").list() {
        builder.host_folder(bind)?;
    }
    keep_uppers(stage)?;
    enter_directory(&builder.root, "to the new root")?;
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
        fs::DirBuilder::new().mode(mode).create(path).named(format!("mkdir {path}"))?;
        self.give(path)
    }

    /// An empty file, to mount something on.
    fn file(&self, path: &str) -> Res<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o644).open(path).named(format!("create {path}"))?;
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
        mount_fs("overlay", &target, "overlay", MS_NODEV, &options).map_err(what)?;
        if at == "/" {
            self.root = open_path("root")?; // what it was lies below the overlay now
        }
        Ok(())
    }

    /// Opens a place of the box; the path names the open descriptor and cannot be redirected.
    fn reached(&self, at: &str) -> Res<(OwnedFd, String)> {
        let fd = open_in_root(&self.root, at, O_PATH)?;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Ok((fd, path))
    }

    /// Makes a directory (or an empty file) at a path of the box, with its parents.
    fn place(&self, at: &str, is_directory: bool) -> Res<()> {
        let names: Vec<&str> = at.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        for end in 1..=names.len() {
            let path = format!("/{}", names[..end].join("/"));
            if open_in_root(&self.root, &path, O_PATH).is_err() {
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
        self.file(&full)
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

    /// Fills /dev from within: what is mounted there is new, so its names lead nowhere else.
    fn devices(&mut self) -> Res<()> {
        self.mount_at("tmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k,nr_inodes=64")?;
        enter_directory(&self.reached("/dev")?.0, "to /dev of the box")?;
        for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
            self.device(name, 1, minor)?;
        }
        self.device("tty", 5, 0)?;
        for (name, target) in
            [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")]
        {
            std::os::unix::fs::symlink(target, name).named(format!("link /dev/{name}"))?;
        }
        for name in ["pts", "shm"] {
            self.directory(name, 0o755)?;
        }
        let group = self.id_base.map_or(String::new(), |id| format!(",gid={}", id + 5));
        let options = format!("newinstance,ptmxmode=0666,mode=0620{group}");
        mount_fs("devpts", "pts", "devpts", MS_NOSUID | MS_NOEXEC, &options)?;
        let shm = self.spec.get("shm_bytes").int().unwrap_or(64 << 20);
        mount_fs("tmpfs", "shm", "tmpfs", MS_NOSUID | MS_NODEV, &format!("mode=1777,size={shm}"))
    }

    /// A device of /dev, where the process stands.
    fn device(&self, name: &str, major: u64, minor: u64) -> Res<()> {
        if self.id_base.is_some() {
            return make_device(name, major, minor);
        }
        self.file(name)?;
        let node = clone_tree(&format!("/dev/{name}"), true)?;
        attach_mount(&node, &open_path(name)?, name)
    }

    fn proc_and_sys(&mut self) -> Res<()> {
        let quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC;
        self.mount_at("proc", "/proc", quiet, "")?;
        let (proc, path) = self.reached("/proc")?;
        // Services bind low ports in their own network namespace without a capability over it.
        if self.spec.get("own_network").bool() {
            let _ = fs::write(format!("{path}/sys/net/ipv4/ip_unprivileged_port_start"), "0");
        }
        if self.mount_at("sysfs", "/sys", quiet | MS_RDONLY, "").is_ok() {
            mask_folder(&self.reached("/sys")?.0, "firmware")?;
        }
        for name in ["sys", "sysrq-trigger", "irq", "bus", "fs"] {
            freeze(&proc, name)?;
        }
        for name in ["kcore", "keys", "key-users", "kpagecount", "kpagecgroup", "kpageflags", "latency_stats", "timer_list", "sched_debug", "vmallocinfo", "kallsyms"] {
            mask_file(&proc, name)?;
        }
        ["acpi", "scsi"].iter().try_for_each(|name| mask_folder(&proc, name))
    }
}

/// Makes an entry of a freshly mounted /proc read-only, if it exists. The kernel's own files are no links.
fn freeze(dir: &OwnedFd, name: &str) -> Res<()> {
    let tree = match clone_tree_at(dir.as_raw_fd(), name, true) {
        Err(fail) if fail.errno == ENOENT => return Ok(()),
        tree => tree?,
    };
    set_mount_attr(&tree, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, None)?;
    attach_mount_at(&tree, dir, name)
}

/// Covers a file of a freshly mounted /proc, if it exists, by /dev/null. It is asked for first: to drop a
/// mount that was made for nothing waits for every processor.
fn mask_file(dir: &OwnedFd, name: &str) -> Res<()> {
    match exists_at(dir, name)? {
        true => attach_mount_at(&clone_tree("/dev/null", true)?, dir, name),
        false => Ok(()),
    }
}

/// Covers a folder of a freshly mounted /proc or /sys, if it exists, by an empty one.
fn mask_folder(dir: &OwnedFd, name: &str) -> Res<()> {
    if !exists_at(dir, name)? {
        return Ok(());
    }
    let flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    mount_fs("tmpfs", &format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()), "tmpfs", flags, "size=4k,mode=555")
}
