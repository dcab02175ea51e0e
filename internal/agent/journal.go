package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"

	"culvert/internal/agentcore"
	"culvert/internal/api"
	"culvert/internal/api/culvertv1"
)

// journal is what the managers said, on disk, so that an agent that starts
// while they are all gone knows what its kernel should hold.
//
// It is a sequence of frames: length and CRC-32C (four bytes each, big
// endian), then a culvertv1.Down with items. A frame is written before the
// core acts on it, so whatever is in the kernel is in the journal. It is not
// synced: the page cache survives the death of the agent, and when the machine
// dies its kernel tables die with it. A torn end is cut off.
type journal struct {
	path string
	f    *os.File
	size int64
	base int64 // size after the last rewriting
}

const (
	maxFrame     = 8 << 20
	leastRewrite = 4 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openJournal replays what is there into take and leaves the file open for
// more. A frame that is torn or altered ends the replay, and is cut off with
// all that follows.
func openJournal(path string, take func(agentcore.Items)) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{path: path, f: f}
	for {
		items, n, err := readFrame(io.NewSectionReader(f, j.size, maxFrame+8))
		if err != nil {
			break
		}
		j.size += n
		take(itemsOf(items))
	}
	j.base = j.size
	if err := f.Truncate(j.size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

var errFrame = errors.New("journal frame is not valid")

func readFrame(r io.Reader) (*api.Items, int64, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return nil, 0, errFrame
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, 0, err
	}
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
		return nil, 0, errFrame
	}
	var pb culvertv1.Down
	if err := proto.Unmarshal(body, &pb); err != nil {
		return nil, 0, errFrame
	}
	d, err := api.DownFromPB(&pb)
	if err != nil || d.Items == nil {
		return nil, 0, errFrame
	}
	return d.Items, int64(n) + 8, nil
}

func frame(buf []byte, items *api.Items) ([]byte, error) {
	body, err := proto.Marshal(api.DownPB(api.Down{Items: items}))
	if err != nil {
		return nil, fmt.Errorf("encode journal frame: %w", err)
	}
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(body)))
	buf = binary.BigEndian.AppendUint32(buf, crc32.Checksum(body, castagnoli))
	return append(buf, body...), nil
}

// append writes one message. Before a file grows beyond twice of what it would
// be written anew, it is written anew from what the core knows.
func (j *journal) append(items *api.Items, c *agentcore.Core) error {
	if j.size > leastRewrite && j.size > 2*j.base {
		if err := j.rewrite(c); err != nil {
			return err
		}
	}
	b, err := frame(nil, items)
	if err != nil {
		return err
	}
	if _, err := j.f.WriteAt(b, j.size); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	j.size += int64(len(b))
	return nil
}

func (j *journal) rewrite(c *agentcore.Core) error {
	var b []byte
	for _, it := range c.Known() {
		var err error
		if b, err = appendChunks(b, it); err != nil {
			return err
		}
	}
	tmp, err := os.CreateTemp(filepath.Dir(j.path), ".journal-*")
	if err != nil {
		return fmt.Errorf("rewrite journal: %w", err)
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(b); err != nil {
		return errors.Join(fmt.Errorf("rewrite journal: %w", err), tmp.Close())
	}
	if err := os.Rename(tmp.Name(), j.path); err != nil {
		return errors.Join(fmt.Errorf("rewrite journal: %w", err), tmp.Close())
	}
	old := j.f
	j.f, j.size, j.base = tmp, int64(len(b)), int64(len(b))
	return old.Close()
}

// maxChunk bounds the items, and the wants, of one frame.
const maxChunk = 1000

// appendChunks frames one pass over a log: its beginning and its members with
// the first frame, its items, then what was told of, and its end with the last.
func appendChunks(b []byte, it agentcore.Items) ([]byte, error) {
	var frames []*api.Items
	for part := range slices.Chunk(it.Items, maxChunk) {
		out := &api.Items{}
		for _, x := range part {
			out.Items = append(out.Items, api.StreamItem{Rev: x.Rev, Gone: x.Gone, Rec: x.Rec})
		}
		frames = append(frames, out)
	}
	for part := range slices.Chunk(it.Told, maxChunk) {
		frames = append(frames, &api.Items{Told: part})
	}
	if len(frames) == 0 {
		frames = []*api.Items{{}}
	}
	first, last := frames[0], frames[len(frames)-1]
	first.Begins, first.Members, last.UpTo = it.Begins, it.Members, it.UpTo
	for _, e := range it.Ends {
		last.Ends = append(last.Ends, api.LogEnd(e))
	}
	for _, out := range frames {
		var err error
		if b, err = frame(b, out); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (j *journal) close() { _ = j.f.Close() } // nothing is buffered
