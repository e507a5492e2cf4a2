//! Control groups as the edge planned them: directories to make, files to write. Which controllers
//! and file names exist is the edge's knowledge, so v1 and v2 look the same from here.

use crate::sys::{send_signal, touch, Fail, Named, Res, ENOENT, SIGKILL};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// What may be counted in an empty group that is used again: the kernel counts ahead, 256 KiB per processor.
const LEFT_BYTES: u64 = 2 << 20;

/// The directories of one box: one per v1 controller, or a single one on v2.
#[derive(Clone, Default)]
pub struct Group {
    pub dirs: Vec<String>,
}

impl Group {
    /// Makes `name` below each parent; nothing is left behind on failure.
    pub fn create(parents: &[String], name: &str) -> Res<Group> {
        let mut group = Group::default();
        for parent in parents {
            let dir = format!("{parent}/{name}");
            if let Err(error) = fs::create_dir(&dir).named(format!("mkdir {dir}")) {
                group.remove();
                return Err(error);
            }
            group.dirs.push(dir);
        }
        Ok(group)
    }

    /// Writes (file name, value) into whichever directory has the file.
    pub fn limit(&self, file: &str, value: &str) -> Res<()> {
        for dir in &self.dirs {
            let path = format!("{dir}/{file}");
            match fs::OpenOptions::new().write(true).open(&path) {
                Ok(mut open) => return open.write_all(value.as_bytes()).named(format!("write {value} to {path}")),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Fail::of(format!("open {path}"), &error)),
            }
        }
        Err(Fail { what: format!("no control group offers {file}"), errno: ENOENT })
    }

    /// Moves the calling process in. The first move after a pause waits for an RCU grace period (about
    /// 10 ms), so it happens in a process that nobody waits for.
    pub fn join(&self) -> Res<()> {
        for dir in &self.dirs {
            let path = format!("{dir}/cgroup.procs");
            fs::write(&path, "0").named(format!("join {path}"))?;
        }
        Ok(())
    }

    /// Whether another box may have these groups: nobody is in them, the memory killer has not struck, nothing
    /// stands still, and little is left of the memory that was counted. Limits are written for each box.
    pub fn is_like_new(&self) -> bool {
        let kills = self.read(&["memory.oom_control", "memory.events"]);
        let has_killed = kills.is_some_and(|text| !text.lines().any(|line| line == "oom_kill 0"));
        let used = self.number(&["memory.usage_in_bytes", "memory.current"]).unwrap_or(0);
        let frozen = self.number(&["cgroup.freeze"]).unwrap_or(0);
        self.number(&["pids.current"]) == Some(0) && !has_killed && frozen == 0 && used <= LEFT_BYTES
    }

    fn number(&self, files: &[&str]) -> Option<u64> {
        self.read(files)?.trim().parse().ok()
    }

    /// The first of these files that one of the directories has.
    fn read(&self, files: &[&str]) -> Option<String> {
        let paths = self.dirs.iter().flat_map(|dir| files.iter().map(move |file| format!("{dir}/{file}")));
        paths.filter_map(|path| fs::read_to_string(path).ok()).next()
    }

    /// Whether the groups' name begins so.
    pub fn is_named(&self, prefix: &str) -> bool {
        let name = |dir: &String| Path::new(dir).file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        self.dirs.iter().all(name)
    }

    /// Begins the time anew for which the edge leaves a group alone that nobody is in; false if it has gone.
    pub fn renew(&self) -> bool {
        self.dirs.iter().all(|dir| touch(dir))
    }

    /// Kills what is in the groups: the last resort where process 1 could not take it along.
    pub fn kill(&self) {
        for dir in &self.dirs {
            let pids = fs::read_to_string(format!("{dir}/cgroup.procs")).unwrap_or_default();
            pids.lines().filter_map(|pid| pid.parse().ok()).for_each(|pid| send_signal(pid, SIGKILL));
        }
    }

    /// Removes the directories; false while a process is still in one.
    pub fn remove(&self) -> bool {
        let gone = |dir: &String| fs::remove_dir(dir).is_ok() || !Path::new(dir).exists();
        self.dirs.iter().map(gone).fold(true, |all, one| all && one)
    }
}
