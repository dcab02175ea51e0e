package managercore

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"culvert/internal/api"
	"culvert/internal/overlay"
)

// Mode is what a Put may do.
type Mode uint8

// Modes of a Put.
const (
	ModeCreate Mode = 1 // refused if it exists with other content
	ModeSet    Mode = 2 // refused if it does not exist
	ModeApply  Mode = 3 // creates or sets
)

// Asked is one request of the API. The answer is a Reply with its ID.
type Asked struct {
	ID    uint64
	Actor string // for the cause of every record that changes
	// Seed is 16 random bytes from the driver; UIDs of new records and
	// allocated MACs derive from it, so that the core needs no randomness.
	Seed overlay.UID

	// Exactly one of these is set.
	Put     *Put
	Delete  *Delete
	AddHost *AddHost
}

// Put writes documents: all of them or none. A document with a revision (Seen)
// that its record is no longer at is refused with api.CodeStale, unless it says
// what is there already: then nothing is overwritten, and a request that was
// answered by nobody can be repeated.
type Put struct {
	Mode Mode
	Docs []overlay.Doc
}

// Delete removes one object.
type Delete struct {
	Kind         overlay.Kind
	Tenant, Name string
	WithPorts    bool
}

// AddHost enters a host that joins. The same machine may join again under its
// name and keeps its UID; another machine is refused that name.
type AddHost struct {
	Name      string
	MachineID string
}

// derive makes the i-th UID of a request. FNV is enough: the seed is random
// and nobody can choose it.
func derive(seed overlay.UID, i int, salt string) overlay.UID {
	h := fnv.New128a()
	_, _ = h.Write(seed[:])
	_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(i)))
	_, _ = h.Write([]byte(salt))
	return overlay.UID(h.Sum(nil))
}

// admission is one request under way.
type admission struct {
	*tx
	req     Asked
	mode    Mode
	made    int
	changes []Changed
	routed  map[overlay.UID]string // networks whose policies change, with the cause
	wider   map[overlay.UID]bool   // networks that more hosts may serve

	rerouted map[overlay.UID]rerouted // domains whose next hops may change
	freed    []Key                    // ports whose MAC and addresses were taken out of the indexes
}

func (c *Core) ask(e Asked) {
	if c.lost {
		c.reply(Reply{ID: e.ID, Refusal: refuseLost()})
		return
	}
	a := &admission{tx: c.begin(), req: e, routed: map[overlay.UID]string{}, wider: map[overlay.UID]bool{}, rerouted: map[overlay.UID]rerouted{}}
	var no *api.Refusal
	switch {
	case e.Put != nil:
		a.mode = e.Put.Mode
		var late *overlay.Doc
		if late, no = a.put(e.Put.Docs); late != nil {
			a.refuseStale(*late)
			return
		}
	case e.AddHost != nil:
		no = a.addHost(*e.AddHost)
	case e.Delete != nil:
		no = a.delete(*e.Delete)
		if no == nil && a.blocking() {
			return // answers when its second half is done
		}
	}
	a.finish(no)
}

// finish answers now if nothing is to be written, else when it is committed.
func (a *admission) finish(no *api.Refusal) {
	c, id, changes := a.c, a.req.ID, a.changes
	if no == nil {
		no = a.deriveGateways()
	}
	if no == nil {
		no = a.checkRoutes()
	}
	if no == nil {
		a.deriveWays()
		a.spread()
		no = a.tooMuch()
	}
	if no != nil {
		a.rollback()
		a.unfree()
		c.reply(Reply{ID: id, Refusal: no})
		return
	}
	if a.empty() {
		c.reply(Reply{ID: id, Changes: changes})
		return
	}
	a.commit(
		func(rev overlay.Rev) { c.reply(Reply{ID: id, Rev: rev, Changes: changes}) },
		func() { c.reply(Reply{ID: id, Refusal: unknownOutcome()}) },
	)
}

// maxWrites bounds the records that one request writes: they are committed at
// once.
const maxWrites = 1000

func (a *admission) tooMuch() *api.Refusal {
	if n := len(a.tx.ch.writes); n > maxWrites {
		return api.Refuse(api.CodeField, "Nothing was written", fmt.Sprintf("the request changes %d records with all that follows from it, and %d are the most at once", n, maxWrites),
			"make several requests of it; of a file: several files")
	}
	return nil
}

func (a *admission) newMeta(d *overlay.Doc, tenant overlay.UID) overlay.Meta {
	a.made++
	return overlay.Meta{
		UID: derive(a.req.Seed, a.made, d.Kind.String()+"/"+d.Name), Name: d.Name, Tenant: tenant, Labels: d.Labels,
		Cause: a.cause("create", d), Changed: int64(a.c.now),
	}
}

func (a *admission) cause(verb string, d *overlay.Doc) string {
	return fmt.Sprintf("%s: %s %s", a.req.Actor, d.Kind, verb)
}

// again is the Meta of a record that changes.
func (a *admission) again(m overlay.Meta, d *overlay.Doc) overlay.Meta {
	m.Labels, m.Cause, m.Changed = d.Labels, a.cause("set", d), int64(a.c.now)
	return m
}

func (a *admission) did(action string, rec overlay.Record) {
	a.changes = append(a.changes, Changed{action, rec})
}

// title begins the sentence of a refusal: "Network blue", with the tenant in
// front of the name unless it is the default one.
func title(d *overlay.Doc) string {
	kind := d.Kind.String()
	kind = strings.ToUpper(kind[:1]) + kind[1:]
	return kind + " " + qualified(d.Tenant, d.Name)
}

// qualified is a name as it is typed: with the tenant in front unless that is
// the default one, or there is none.
func qualified(tenant, name string) string {
	if tenant == "" || tenant == DefaultTenant {
		return name
	}
	return tenant + "/" + name
}

// named is a name as it is written in a document of tenant viewer: with the
// tenant in front if it is another's.
func (a *admission) named(viewer, tenant overlay.UID, name string) string {
	if viewer == tenant {
		return name
	}
	return a.tenantName(tenant) + "/" + name
}

func (a *admission) tenantName(uid overlay.UID) string {
	if rec, ok := a.get(Key{Kind: overlay.KindTenant, UID: uid}); ok {
		return rec.(*overlay.Tenant).Name
	}
	return uid.String()
}

// refer is what a document of a tenant means by NAME or TENANT/NAME; nil if
// there is none. asTyped is how to type it.
func (a *admission) refer(kind overlay.Kind, t *overlay.Tenant, ref string) (rec overlay.Record, asTyped string) {
	owner, name, ok := strings.Cut(ref, "/")
	if !ok {
		return a.find(kind, t.UID, ref), qualified(t.Name, ref)
	}
	o, _ := a.find(overlay.KindTenant, overlay.UID{}, owner).(*overlay.Tenant)
	if o == nil {
		return nil, ref
	}
	return a.find(kind, o.UID, name), ref
}

// typed is a network's name as it is typed.
func typed(n *overlay.Network) string { return qualified(n.TenantName, n.Name) }

// find is the working record of that kind and name.
func (a *admission) find(kind overlay.Kind, tenant overlay.UID, name string) overlay.Record {
	k, ok := a.c.ix.names[nameKey{kind, tenant, name}]
	if !ok {
		return nil
	}
	rec, _ := a.get(k)
	return rec
}

// put admits the documents one after the other. late is the first that was
// read too long ago: whatever else is wrong with it may be wrong because of
// that, so it is what the caller is told.
func (a *admission) put(docs []overlay.Doc) (late *overlay.Doc, no *api.Refusal) {
	a.free(docs)
	for i := range docs {
		d := &docs[i]
		if a.mode == ModeSet && a.exists(d) == nil {
			return nil, notFound(title(d), d.Kind)
		}
		outdated := a.outdated(d)
		no := a.putOne(d)
		if outdated && (no != nil || a.changes[len(a.changes)-1].Action != "unchanged") {
			return d, nil
		}
		if no != nil {
			return nil, no
		}
	}
	return nil, a.checkDomains(docs)
}

func (a *admission) putOne(d *overlay.Doc) *api.Refusal {
	switch d.Kind {
	case overlay.KindTenant:
		return a.putTenant(d)
	case overlay.KindNetwork:
		return a.putNetwork(d)
	case overlay.KindPort:
		return a.putPort(d)
	case overlay.KindDomain:
		return a.putDomain(d)
	case overlay.KindPolicy:
		return a.putPolicy(d)
	case overlay.KindGateway:
		return a.putGateway(d)
	}
	return api.Refuse(api.CodeField, title(d)+" was not written", "a "+d.Kind.String()+" is observed, not declared", "apply tenants, domains, networks, policies, gateways and ports")
}

func (a *admission) exists(d *overlay.Doc) overlay.Record {
	if d.Kind == overlay.KindTenant {
		return a.find(d.Kind, overlay.UID{}, d.Name)
	}
	t := a.find(overlay.KindTenant, overlay.UID{}, d.Tenant)
	if t == nil {
		return nil
	}
	return a.find(d.Kind, t.(*overlay.Tenant).UID, d.Name)
}

func notFound(what string, kind overlay.Kind) *api.Refusal {
	return api.Refuse(api.CodeNotFound, what+" was not found", "no "+kind.String()+" has that name", "see what there is: culvert "+kind.String()+" list")
}

func (a *admission) tenant(d *overlay.Doc) (*overlay.Tenant, *api.Refusal) {
	t := a.find(overlay.KindTenant, overlay.UID{}, d.Tenant)
	if t == nil {
		return nil, api.Refuse(api.CodeNotFound, title(d)+" was not written", "tenant "+d.Tenant+" does not exist", "make it first: culvert tenant create "+d.Tenant)
	}
	return t.(*overlay.Tenant), nil
}

func (a *admission) putTenant(d *overlay.Doc) *api.Refusal {
	want := overlay.Tenant{MaxNetworks: d.Quotas.MaxNetworks, MaxPorts: d.Quotas.MaxPorts, MaxPortAddresses: d.Quotas.MaxPortAddresses}
	old, _ := a.find(d.Kind, overlay.UID{}, d.Name).(*overlay.Tenant)
	if old == nil {
		want.Meta = a.newMeta(d, overlay.UID{})
		a.tx.put(&want)
		a.did("created", &want)
		return nil
	}
	want.Meta = old.Meta
	same := want.MaxNetworks == old.MaxNetworks && want.MaxPorts == old.MaxPorts && want.MaxPortAddresses == old.MaxPortAddresses
	if no := a.sameOrSet(d, same && slices.Equal(d.Labels, old.Labels), old); no != nil || same && slices.Equal(d.Labels, old.Labels) {
		return no
	}
	if n := a.c.ix.networks[old.UID]; want.MaxNetworks != 0 && n > int(want.MaxNetworks) {
		return api.Refuse(api.CodeQuota, title(d)+" was not changed", fmt.Sprintf("it has %d networks, more than the %d wanted", n, want.MaxNetworks), "delete networks first, or ask for a larger quota")
	}
	if n := a.c.ix.tports[old.UID]; want.MaxPorts != 0 && n > int(want.MaxPorts) {
		return api.Refuse(api.CodeQuota, title(d)+" was not changed", fmt.Sprintf("it has %d ports, more than the %d wanted", n, want.MaxPorts), "delete ports first, or ask for a larger quota")
	}
	want.Meta = a.again(old.Meta, d)
	a.tx.put(&want)
	a.did("changed", &want)
	return nil
}

// sameOrSet answers for an object that exists: unchanged, or refused because
// the mode is create. nil and nothing done means that the caller goes on.
func (a *admission) sameOrSet(d *overlay.Doc, same bool, old overlay.Record) *api.Refusal {
	if same {
		a.did("unchanged", old)
		return nil
	}
	if a.mode == ModeCreate {
		return api.Refuse(api.CodeExists, title(d)+" was not created", "it exists with other content",
			fmt.Sprintf("look at it: culvert %s show %s; change it: culvert %s set %s", d.Kind, d.Name, d.Kind, d.Name))
	}
	return nil
}

func (a *admission) addHost(h AddHost) *api.Refusal {
	if old, _ := a.find(overlay.KindHost, overlay.UID{}, h.Name).(*overlay.Host); old != nil {
		if old.MachineID != h.MachineID || h.MachineID == "" {
			return api.Refuse(api.CodeHostTaken, "Host "+h.Name+" was not added", "another host has that name",
				"join under another name: culvert join TOKEN --host NAME")
		}
		a.did("unchanged", old)
		return nil
	}
	rec := &overlay.Host{
		Meta:      overlay.Meta{UID: derive(a.req.Seed, 1, "host/"+h.Name), Name: h.Name, Cause: a.req.Actor + ": join", Changed: int64(a.c.now)},
		MachineID: h.MachineID,
	}
	a.tx.put(rec)
	a.did("created", rec)
	return nil
}
