//! A disk whose power is cut.
//!
//! It is a file system of its own, in an image. At one moment the image is copied: what of the files had been written out
//! by then is what a disk holds after a power cut that honours `fsync`; what the system kept in its memory is not in it.
//!
//! It needs Linux, `mkfs.ext4`, and the right to mount.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

type Outcome<T> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// A file system in an image, mounted; both go with it.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    image: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    /// Makes and mounts a file system of 512 MiB.
    ///
    /// # Errors
    /// Says what failed.
    pub fn new() -> Outcome<Self> {
        let disk = Self::at_new_folder()?;
        let image = fs::File::create(&disk.image).map_err(text)?;
        image.set_len(512 * 1024 * 1024).map_err(text)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(&disk.image))?;
        disk.mount()
    }

    fn at_new_folder() -> Outcome<Self> {
        let folder = std::env::temp_dir().join(format!("mq-power-{:08x}", fastrand::u32(..)));
        let disk = Self {
            image: folder.join("image"),
            mounted: folder.join("mounted"),
            folder,
        };
        fs::create_dir_all(&disk.mounted).map_err(text)?;
        Ok(disk)
    }

    fn mount(self) -> Outcome<Self> {
        self.mount_image()?;
        Ok(self)
    }

    fn mount_image(&self) -> Outcome<()> {
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&self.image)
            .arg(&self.mounted))
    }

    /// Returns the folder that it is mounted at.
    #[must_use]
    pub fn mounted(&self) -> &Path {
        &self.mounted
    }

    /// Returns the disk as it would be found after a power cut now.
    ///
    /// # Errors
    /// Says what failed.
    pub fn copy(&self) -> Outcome<Self> {
        let copy = Self::at_new_folder()?;
        fs::copy(&self.image, &copy.image).map_err(text)?;
        copy.mount()
    }

    /// Returns an image of the disk as it would be found after a power cut now, for [`Disk::go_on_with`].
    ///
    /// # Errors
    /// Says what failed.
    pub fn image_now(&self) -> Outcome<PathBuf> {
        let after = self.folder.join("after");
        fs::copy(&self.image, &after).map_err(text)?;
        Ok(after)
    }

    /// Takes the disk away and puts another image into its place. Nothing may have a file of it open.
    ///
    /// # Errors
    /// Says what failed.
    pub fn go_on_with(&self, image: &Path) -> Outcome<()> {
        run(Command::new("umount").arg(&self.mounted))?;
        fs::rename(image, &self.image).map_err(text)?;
        self.mount_image()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that was killed a moment ago may still have files open.
        let _ = run(Command::new("umount").arg("-l").arg(&self.mounted));
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn run(command: &mut Command) -> Outcome<()> {
    let output = command.output().map_err(text)?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
