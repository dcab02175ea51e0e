package etcd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"culvert/internal/store"
)

// formatLine heads the marker file; another format is refused, not guessed at.
const formatLine = "culvert store 1"

// claimDir makes dir ours: locked against other processes, and marked with, or
// checked against, the cluster. The lock is held until the file is closed.
func claimDir(dir, cluster string) (lock *os.File, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	// Not etcd's own lock: that one is waited for without end.
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: %s", store.ErrLocked, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return lock, checkMarker(dir, cluster)
}

// checkMarker compares the directory's marker with cluster, or writes it into a
// directory that holds nothing yet.
func checkMarker(dir, cluster string) error {
	path := filepath.Join(dir, "cluster")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(dir, "member")); err == nil {
			return fmt.Errorf("%w: %s is missing", store.ErrCorrupt, path)
		}
		return writeMarker(dir, path, cluster)
	}
	if err != nil {
		return fmt.Errorf("read marker: %w", err)
	}
	have, ok := strings.CutPrefix(string(text), formatLine+"\ncluster ")
	have, nl := strings.CutSuffix(have, "\n")
	if !ok || !nl || store.CheckCluster(have) != nil {
		return fmt.Errorf("%w: %s is not a marker of this format (%q)", store.ErrCorrupt, path, formatLine)
	}
	if have != cluster {
		return &store.OtherClusterError{Dir: dir, Have: have, Want: cluster}
	}
	return nil
}

// writeMarker puts the marker down whole or not at all, power cut included.
func writeMarker(dir, path, cluster string) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	_, err = fmt.Fprintf(f, "%s\ncluster %s\n", formatLine, cluster)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write marker: %w", err)
	}
	return nil
}
