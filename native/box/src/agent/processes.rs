//! The process tree of the box, read from its own /proc.

use crate::sys::{send_signal, SIGCONT, SIGKILL, SIGSTOP};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::Duration;

/// How often, a tenth of a millisecond apart, to look for processes that do not stand still yet.
const STOP_ATTEMPTS: usize = 2000;

/// Parent of every process of the box.
fn parents() -> HashMap<i32, i32> {
    living().into_iter().map(|process| (process.pid, process.parent)).collect()
}

struct Process {
    pid: i32,
    parent: i32,
    is_stopped: bool,
}

/// Every process of the box. Zombies are left out: they need no signal.
fn living() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and brackets: fields count from the last ')'.
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let is_stopped = state == "T" || state == "t";
    (state != "Z" && state != "X").then_some(Process { pid, parent, is_stopped })
}

/// Stops every process but this one, those that they start meanwhile included; returns whom, and
/// whether nobody moves. Those that stood still before are not among them.
///
/// A process is stopped when its parent stands still: a shell that still moved would learn that its
/// command was stopped and take the terminal from it.
pub fn stop_all() -> (HashSet<i32>, bool) {
    let mut stopped = HashSet::new();
    for _ in 0..STOP_ATTEMPTS {
        let mut moving = living();
        moving.retain(|p| p.pid != 1 && !p.is_stopped);
        if moving.is_empty() {
            return (stopped, true);
        }
        let pids: HashSet<i32> = moving.iter().map(|p| p.pid).collect();
        for process in moving.iter().filter(|p| !pids.contains(&p.parent)) {
            send_signal(process.pid, SIGSTOP);
            stopped.insert(process.pid);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    (stopped, false)
}

/// Lets processes go on, the youngest first: a shell that wakes before its child would find it stopped
/// and take the terminal from it.
pub fn let_go(stopped: &HashSet<i32>) {
    let mut youngest_first: Vec<i32> = stopped.iter().copied().collect();
    youngest_first.sort_unstable_by(|a, b| b.cmp(a));
    youngest_first.iter().for_each(|pid| send_signal(*pid, SIGCONT));
}

/// Kills every descendant of `ancestor`; returns how many there were.
pub fn kill_descendants(ancestor: i32) -> usize {
    let parents = parents();
    let is_below = |mut pid: i32| {
        let mut seen = HashSet::new();
        while let Some(parent) = parents.get(&pid) {
            if *parent == ancestor {
                return true;
            }
            if !seen.insert(pid) {
                return false;
            }
            pid = *parent;
        }
        false
    };
    let victims: Vec<i32> = parents.keys().copied().filter(|pid| is_below(*pid)).collect();
    victims.iter().for_each(|pid| send_signal(*pid, SIGKILL));
    victims.len()
}

/// Whether none of these processes runs. A zombie counts as gone: its children have been handed on.
pub fn are_gone(pids: &[i32]) -> bool {
    let left = parents();
    pids.iter().all(|pid| !left.contains_key(pid))
}

/// Kills the children of process 1 that are neither the spawner nor a known supervisor: they exist
/// only where somebody killed the supervisor that had adopted them.
pub fn kill_orphans(spawner: i32, supervisors: &[i32]) -> usize {
    let keep = |pid: i32| pid == spawner || supervisors.contains(&pid);
    let victims: Vec<i32> =
        parents().into_iter().filter(|(pid, parent)| *parent == 1 && !keep(*pid)).map(|(pid, _)| pid).collect();
    for pid in &victims {
        kill_descendants(*pid);
        send_signal(*pid, SIGKILL);
    }
    victims.len()
}
