//! Finds other sockets that listen and were bound at the same path, whatever the path leads to now,
//! through sock_diag(7).

use std::{io, os::unix::ffi::OsStrExt as _, path::Path};

use rustix::{
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send,
        socket_with,
    },
    process::geteuid,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const LISTENING: u32 = 1 << 10;
const SHOW_NAME_FILE_OWNER: u32 = 0x1 | 0x2 | 0x40;
const NAME: u16 = 0;
const FILE: u16 = 1;
const OWNER: u16 = 7;
/// The sizes of a netlink message's header, and of what precedes a socket's attributes.
const HEADER: usize = 16;
const SOCKET: usize = 16;

/// The file that a listening socket was bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    inode: u32,
    device: u32,
    owner: Option<u32>,
}

/// Whether another socket than that of the file `inode` listens that was bound at `path` of the same
/// filesystem by this user or root. The kernel reports only this network namespace.
pub(super) fn listens_besides(path: &Path, inode: u32) -> io::Result<bool> {
    let bound = bound_at(path)?;
    // Without our own socket the filesystem isn't known.
    let Some(own) = bound.iter().find(|bound| bound.inode == inode) else { return Ok(false) };
    let us = geteuid().as_raw();
    Ok(bound.iter().any(|other| {
        other.inode != inode
            && other.device == own.device
            && other.owner.is_none_or(|owner| owner == us || owner == 0)
    }))
}

fn bound_at(path: &Path) -> io::Result<Vec<Bound>> {
    let flags = SocketFlags::CLOEXEC;
    let protocol = Some(netlink::SOCK_DIAG);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut request = Vec::with_capacity(40);
    request.extend(40u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend(LISTENING.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(SHOW_NAME_FILE_OWNER.to_ne_bytes());
    request.extend([0; 8]);
    send(&socket, &request, SendFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (_, length) = recv(&socket, &mut *buffer, RecvFlags::empty())?;
        let mut rest = &buffer[..length.min(buffer.len())];
        if rest.is_empty() {
            return Ok(found);
        }
        while let Some((kind, message, next)) = split_message(rest) {
            match kind {
                SOCK_DIAG_BY_FAMILY => found.extend(parse(message, path)),
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
                _ => {}
            }
            rest = next;
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Splits off a message: its type, its content, and the rest.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let message = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16_at(bytes, 4)?, message, next))
}

/// Splits off an attribute: its type, its value, and the rest.
fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16_at(bytes, 0)?);
    let value = bytes.get(4..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16_at(bytes, 2)?, value, next))
}

fn parse(message: &[u8], path: &Path) -> Option<Bound> {
    let mut rest = message.get(SOCKET..)?;
    let (mut is_it, mut file, mut owner) = (false, None, None);
    while let Some((kind, value, next)) = split_attribute(rest) {
        match kind {
            NAME => {
                let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
                is_it = value[..end] == *path.as_os_str().as_bytes();
            }
            FILE => file = u32_at(value, 0).zip(u32_at(value, 4)),
            OWNER => owner = u32_at(value, 0),
            _ => {}
        }
        rest = next;
    }
    let (inode, device) = file.filter(|_| is_it)?;
    Some(Bound { inode, device, owner })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _, os::unix::net::UnixListener};

    use super::*;

    #[test]
    fn a_listening_socket_is_found_after_its_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let first = UnixListener::bind(&path).unwrap();
        let inode = || fs::metadata(&path).unwrap().ino() as u32;
        assert!(!listens_besides(&path, inode()).unwrap());
        fs::remove_file(&path).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        assert!(listens_besides(&path, inode()).unwrap());
        drop(first);
        assert!(!listens_besides(&path, inode()).unwrap());
    }
}
