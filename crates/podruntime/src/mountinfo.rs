//! The kernel's list of mounts.

use std::path::PathBuf;

use crate::RuntimeError;

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where it is mounted.
    pub(crate) target: PathBuf,
    /// The type of its file system.
    pub(crate) kind: String,
}

/// The mounts of this process's mount namespace, in the order they were made.
pub(crate) fn read() -> Result<Vec<Mount>, RuntimeError> {
    let file = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(file).map_err(RuntimeError::file(file))?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let target = before.split(' ').nth(4)?;
    Some(Mount { target: PathBuf::from(unescape(target)), kind: after.split(' ').next()?.to_owned() })
}

/// Spaces, tabs, line ends and backslashes appear as three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or("").to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn lines_with_and_without_optional_fields() {
        let cases = [
            ("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw", "/mnt2", "ext3"),
            ("22 1 0:4 net:[4026532] /run/netns/a\\040b rw - nsfs nsfs rw", "/run/netns/a b", "nsfs"),
        ];
        for (line, target, kind) in cases {
            assert_eq!(parse(line), Some(Mount { target: PathBuf::from(target), kind: kind.to_owned() }));
        }
        assert_eq!(parse("garbage"), None);
        assert!(read().unwrap().iter().any(|mount| mount.target == Path::new("/")));
    }
}
