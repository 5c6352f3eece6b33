//! The file of the API socket: how it comes and how it goes.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::errno::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::boot::keeper::Kept;

/// Listens at a path. A socket that is left over is replaced; with `replace_live` also one that somebody listens on,
/// as slirp4netns does. The mode comes from the umask. Also the file, which is to be removed in the end.
///
/// # Errors
/// What stands at the path and is no socket, who listens there, or what `bind(2)` says.
pub fn bind(path: &Path, replace_live: bool) -> io::Result<(UnixListener, Kept)> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::other(
                "there is a file of this name and it is no socket; choose another path or remove it",
            ));
        }
        Ok(_) if !replace_live && somebody_listens(path) => {
            return Err(io::Error::other(
                "another process has its socket there; choose another path",
            ));
        }
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    Ok((listener, Kept::note(path)?))
}

/// Whether a socket is somebody's: all but that nobody listens says so, a full queue and a lack of rights, too.
fn somebody_listens(path: &Path) -> bool {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    !matches!(connect(), Err(e) if e.raw_os_error() == Some(Errno::ECONNREFUSED as i32))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("ringtap-{name}-{}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn it_comes_and_goes() {
        let dir = Dir::new("place-comes");
        let path = dir.0.join("api");
        let (listener, place) = bind(&path, false).unwrap();
        assert!(somebody_listens(&path));
        let e = bind(&path, false).unwrap_err();
        assert!(e.to_string().starts_with("another process has its socket there"), "{e}");
        drop(listener);
        place.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_one_is_replaced_and_no_other_file() {
        let dir = Dir::new("place-stale");
        let path = dir.0.join("api");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists() && !somebody_listens(&path));
        let (_listener, place) = bind(&path, false).unwrap();
        // Taken over, the old one leaves the new one alone.
        let (_newer, newer) = bind(&path, true).unwrap();
        place.remove();
        assert!(path.exists());
        newer.remove();
        assert!(!path.exists());
        fs::write(&path, "mine").unwrap();
        let e = bind(&path, true).unwrap_err();
        assert!(e.to_string().contains("no socket"), "{e}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        // A link is no socket, wherever it leads.
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(bind(&path, true).is_err());
    }
}
