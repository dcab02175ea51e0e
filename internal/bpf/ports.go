package bpf

import "errors"

// cv_ports repeats what the programs would otherwise look up for each good
// frame: the port's network, and of each family one of its addresses. Such an
// address is never there without its entry in cv_own: it is noted after that was
// written, and forgotten before that is deleted. An entry whose address is not
// noted only takes longer to find.

// family is an address's place in portConf.IP: V4 or V6 of culvert.h.
func (o ownKey) family() int {
	if addr(o.Addr).Is4() {
		return 0
	}
	return 1
}

// writePorts carries out changes of ports and of what they own.
func (s *Set) writePorts(ports *halves[uint32, portConf], owned *halves[ownKey, uint8], errs []error) {
	s.portMu.Lock()
	defer s.portMu.Unlock()
	remove(s.objects.CvPorts, ports[1].keys, ports[1].failed(errs))
	s.forget(&owned[1], errs)
	owned.write(s.objects.CvOwn, errs)
	s.note(&ports[0], &owned[0], errs)
	put(s.objects.CvPorts, ports[0].keys, ports[0].values, ports[0].failed(errs))
}

// forget takes addresses that are to be deleted out of their ports' entries.
// What cannot be taken out must stay, and is no longer among them.
func (s *Set) forget(owned *group[ownKey, uint8], errs []error) {
	var rest group[ownKey, uint8]
	for i, o := range owned.keys {
		c, ok, err := get[uint32, portConf](s.objects.CvPorts, o.Port)
		if ok && o.Kind == ownIP && c.IP[o.family()] == o.Addr {
			c.IP[o.family()] = [16]byte{}
			err = s.objects.CvPorts.Put(o.Port, c)
		}
		if err != nil {
			errs[owned.at[i]] = err
			continue
		}
		rest.keys, rest.at = append(rest.keys, o), append(rest.at, owned.at[i])
	}
	*owned = rest
}

// note completes the entries of ports that are to be written, and enters the
// addresses that were.
func (s *Set) note(ports *group[uint32, portConf], owned *group[ownKey, uint8], errs []error) {
	confs := map[uint32]*portConf{}
	for i, port := range ports.keys {
		c := &ports.values[i]
		was, _, err := get[uint32, portConf](s.objects.CvPorts, port)
		st, _, e := get[uint32, portState](s.objects.CvState, port)
		c.VNI, c.IP = st.VNI, was.IP
		errs[ports.at[i]] = errors.Join(err, e)
		confs[port] = c
	}
	for i, o := range owned.keys {
		at := owned.at[i]
		if o.Kind != ownIP || owned.values[i] == asRouters || errs[at] != nil {
			continue
		}
		if c := confs[o.Port]; c != nil {
			c.IP[o.family()] = o.Addr
			continue
		}
		c, ok, err := get[uint32, portConf](s.objects.CvPorts, o.Port)
		if ok {
			c.IP[o.family()] = o.Addr
			err = s.objects.CvPorts.Put(o.Port, c)
		}
		errs[at] = err
	}
}
